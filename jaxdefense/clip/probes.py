"""Texts that tokenizers clean or split in different ways; loading checks a tokenizer on them."""

WORDS = (
    "a I photo Quackenbush it's O'Neil O’Neil don't DON'T 's 3 1999 12,5 U.S.A. e-mail foo_bar "
    "Adam_Smith.jpg Ärger naïve cafe\u0301 Zellër Зоя ΟΔΟΣ ß ẞ İstanbul e\u0301\u0301 \u0301 "
    "J\u030c Ǆ \u212a ſ 'ſ 王小明 山田太郎さん 김철수가 مرحبا שלום นาสาว हिन्दी "
    "😀 👩🏽\u200d🚀 🇩🇪 … — - -- . ... !? «x» (x) [x] #1 @a 50% $5 & <b> a<b "
    "&amp; &#39; &eacute; &rsquo; O&rsquo;Neil &amp;amp; Ã© schrÃ¶der ﬁn Ｆｕｌｌ ² ½ Ⅳ "
    "so\u00adft zero\u200bwidth \u200b \ufeffbom right\u200f \u2060 \u180e "
    "nul\x00 \x07 a\x1cb \x1d \x1e \x1f \x7f \x85 "
    "<start_of_text> <end_of_text> [MASK] <s> <pad> a▁b ▁ aĠb"
).split(" ")  # only Python counts some of them as white space

TEXTS = (
    "two  spaces", "", " ", " before", "after ", "a\tb", "a\nb", "a \n b", "a\r\nb", "a\x0bb",
    "a\x85b", "a\u00a0b", "a\u2028b", "a\u3000b", "a \x1c b", "\x1c a",
    "a photo of a cat", "cat - dog", "- cat", "cat -", "A man's dog doesn't like it!",
    "x" * 300, "supercalifragilistic " * 40,
)  # fmt: skip
