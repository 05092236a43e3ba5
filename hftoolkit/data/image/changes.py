"""Images that a plain pipeline would see otherwise: counted, and said wherever they occur.

transformers' pipeline turns a file into RGB by Pillow's ``convert``, which drops transparency and cuts 16 bits off at
255. What is left of such images often shows nothing, so ``cache.decode`` reads them otherwise.
"""

from collections import Counter
from collections.abc import Iterable

from hftoolkit.data.image.cache import SIXTEEN_BITS, TRANSPARENT

FOUND = {
    TRANSPARENT: "have transparent parts: put on white here, while transformers' pipeline drops the transparency",
    SIXTEEN_BITS: "are 16-bit gray: scaled to 8 bits here (65535 is white), while transformers' pipeline cuts them "
    "off at 255",
}
# The two expressions are tried by a test; ``image`` is what Pillow opened.
ON_WHITE = 'Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA")).convert("RGB")'
TO_EIGHT_BITS = 'Image.fromarray(((np.asarray(image).astype("uint32") + 128) // 257).astype("uint8"))'
CARD_SENTENCE = (
    "Transparent images were put on white and 16-bit ones scaled to 8 bits, which the pipeline does not do by itself: "
    f"give it `{ON_WHITE}` and `{TO_EIGHT_BITS}`."
)


def change_warnings(changes: Iterable[str | None]) -> list[str]:
    """Return a sentence for each kind of image among ``CachedImages.changes`` that a plain pipeline sees otherwise."""
    found = list(changes)
    counts = Counter(found)
    advice = "give it such images as the model card says"
    return [f"{counts[kind]} of {len(found)} images {what}; {advice}" for kind, what in FOUND.items() if counts[kind]]
