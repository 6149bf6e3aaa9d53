/** What the console uses of marked. */
export class Marked {
  constructor(options: { breaks?: boolean; renderer: Record<string, (token: any) => string> });
  parse(text: string, options: { async: false }): string;
}
