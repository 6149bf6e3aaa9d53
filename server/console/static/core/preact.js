/** Preact with htm's templates: the one place from which other modules take them. */
import { Fragment, createContext, h, render } from '../vendor/preact.mjs';
import { useCallback, useContext, useEffect, useId, useLayoutEffect, useMemo, useRef, useState } from '../vendor/hooks.mjs';
import htm from '../vendor/htm.mjs';

/** Templates that read like HTML and make Preact's nodes; what is put into them is text, never markup. */
export const html = htm.bind(h);

export {
  Fragment, createContext, h, render,
  useCallback, useContext, useEffect, useId, useLayoutEffect, useMemo, useRef, useState,
};
