/** What the console uses of DOMPurify. */
declare const purify: {
  sanitize(markup: string, options: Record<string, unknown>): any;
  addHook(name: string, hook: (node: Element) => void): void;
};
export default purify;
