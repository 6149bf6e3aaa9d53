/** What the console uses of marked. */
export const marked: { parse(text: string, options: { async: false; breaks?: boolean }): string };
