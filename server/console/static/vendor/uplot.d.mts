/** What the console uses of uPlot. */
declare class UPlot {
  constructor(options: any, data: any, parent: HTMLElement);
  setData(data: any): void;
  setSize(size: { width: number; height: number }): void;
  destroy(): void;
}
export default UPlot;
