/** What the console uses of Preact; templates make nodes of any sort. */
export function h(type: any, props?: any, ...children: any[]): any;
export function render(node: any, parent: Element): void;
export function Fragment(props: { children?: any }): any;
export function createContext<T>(value: T): { Provider: any; Consumer: any };
