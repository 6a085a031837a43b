"""Draw the sprites of the mini world's objects from an emoji font. For maintainers: the sheet is in git.

Reads:  --font, Noto Color Emoji as Debian's package fonts-noto-color-emoji installs it; ood_objects/objects.txt
Writes: mini/world/sprites/sheet.png (RGBA); index.json: where each object's sprite is, which glyph it was, and the
        names for which the font has none; objects.txt: the names that have one, as the stages read them

    python mini/draw_sprites.py --font /usr/share/fonts/truetype/noto/NotoColorEmoji.ttf
"""

from __future__ import annotations

import sys

try:
    from genval.runtime import cli
except ModuleNotFoundError:
    sys.exit("error: GenVal is not installed in this environment. Run: make install")

from genval.runtime.errors import GenValError
from genval.runtime.paths import resolve
from mini.world.settings import DrawSpritesSettings

GLYPH_SIZE = 109  # the only size of the font's bitmaps
# The glyph of each object, or of a similar one: the cheetah has the glyph of a leopard.
GLYPHS = {
    "chair": "\U0001fa91", "sofa": "\U0001f6cb", "mirror": "\U0001fa9e", "lamp": "\U0001fa94",
    "bathtub": "\U0001f6c1", "box": "\U0001f4e6", "toilet": "\U0001f6bd", "book": "\U0001f4d5",
    "computer": "\U0001f5a5", "arcade machine": "\U0001f3b0", "bottle": "\U0001f37e", "bag": "\U0001f45c",
    "vase": "\U0001f3fa", "plate": "\U0001f37d", "clock": "\U0001f570", "baby": "\U0001f476",
    "billboard": "\U0001faa7", "lion": "\U0001f981", "elephant": "\U0001f418", "giraffe": "\U0001f992",
    "tiger": "\U0001f405", "penguin": "\U0001f427", "dolphin": "\U0001f42c", "kangaroo": "\U0001f998",
    "gorilla": "\U0001f98d", "cheetah": "\U0001f406", "polar bear": "\U0001f43b\u200d\u2744\ufe0f",
    "koala": "\U0001f428", "zebra": "\U0001f993", "hippopotamus": "\U0001f99b", "chimpanzee": "\U0001f412",
    "flamingo": "\U0001f9a9", "panda": "\U0001f43c",
}  # fmt: skip


def main(settings: DrawSpritesSettings) -> None:
    from unicodedata import name

    from PIL import Image, ImageDraw, ImageFont, features

    from genval.runtime.files import replace_file, write_bytes, write_json

    path = resolve(settings.font)
    if not path.is_file():
        raise GenValError(f"{path} does not exist. Install Debian's fonts-noto-color-emoji, or give its file.")
    if not features.check("raqm"):
        raise GenValError("Pillow has no Raqm, which the polar bear's code points need. Use Pillow's own wheels.")
    font = ImageFont.truetype(str(path), GLYPH_SIZE)
    rows = -(-len(GLYPHS) // settings.columns)
    sheet = Image.new("RGBA", (settings.columns * settings.cell, rows * settings.cell))
    objects = {}
    for number, (thing, glyph) in enumerate(GLYPHS.items()):
        canvas = Image.new("RGBA", (2 * GLYPH_SIZE, 2 * GLYPH_SIZE))
        ImageDraw.Draw(canvas).text((GLYPH_SIZE // 4, GLYPH_SIZE // 4), glyph, font=font, embedded_color=True)
        box = canvas.getchannel("A").point(lambda alpha: 255 * (alpha > 16)).getbbox()
        if box is None:
            raise GenValError(f"{path} has no glyph for {thing}: expected Noto Color Emoji 2.042 or newer.")
        sprite = canvas.crop(box)
        scale = settings.cell / max(sprite.size)
        # "RGBa" is premultiplied by alpha, so transparent pixels do not change the colours at the edge.
        size = (round(sprite.width * scale), round(sprite.height * scale))
        sprite = sprite.convert("RGBa").resize(size, Image.Resampling.LANCZOS).convert("RGBA")
        left, top = number % settings.columns * settings.cell, number // settings.columns * settings.cell
        sheet.paste(sprite, (left, top))
        objects[thing] = {
            "glyph": " ".join(f"U+{ord(point):04X}" for point in glyph) + f", {name(glyph[0]).lower()}",
            "top": top, "left": left, "height": sprite.height, "width": sprite.width,
        }  # fmt: skip
    out = resolve(settings.output_dir)
    with replace_file(out / "sheet.png") as temporary:
        sheet.save(temporary, format="PNG", optimize=True)
    names = resolve(settings.objects).read_text(encoding="utf-8").splitlines()
    left_out = [thing for thing in names if thing and thing not in GLYPHS]
    write_json(out / "index.json", {"font": font.getname()[0], "objects": objects, "left_out": left_out})
    write_bytes(out / "objects.txt", "".join(f"{thing}\n" for thing in objects).encode())
    print(f"Drew {len(objects)} sprites, {len(left_out)} names have no glyph: {out / 'sheet.png'}")


if __name__ == "__main__":
    cli.run(main, DrawSpritesSettings, __doc__)
