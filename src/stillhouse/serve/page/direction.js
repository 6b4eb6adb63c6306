/** The direction of a text: that of its first letter. */

const LETTER = /\p{L}/u;
const RIGHT_TO_LEFT = /[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc\u{10800}-\u{10fff}\u{1e800}-\u{1efff}]/u;

/** @returns {"ltr"|"rtl"|null} null without a letter */
export function directionOf(text) {
  const letter = LETTER.exec(text);
  if (!letter) return null;
  return RIGHT_TO_LEFT.test(letter[0]) ? "rtl" : "ltr";
}
