"""Tiny files of Word, PowerPoint and EPUB: zip files with no more than their readers need."""

from __future__ import annotations

import io
from zipfile import ZIP_DEFLATED, ZipFile

RELATIONS = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
WORD = (
    f'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main" xmlns:r="{RELATIONS}" '
    'xmlns:m="http://schemas.openxmlformats.org/officeDocument/2006/math" xmlns:v="urn:schemas-microsoft-com:vml"'
)
SLIDE = (
    'xmlns:a="http://schemas.openxmlformats.org/drawingml/2006/main" '
    f'xmlns:p="http://schemas.openxmlformats.org/presentationml/2006/main" xmlns:r="{RELATIONS}" '
    'xmlns:c="http://schemas.openxmlformats.org/drawingml/2006/chart"'
)


def packed(parts: dict[str, str]) -> bytes:
    buffer = io.BytesIO()
    with ZipFile(buffer, "w", ZIP_DEFLATED) as file:
        for name, text in parts.items():
            file.writestr(name, text)
    return buffer.getvalue()


def relations(**targets: str) -> str:
    """A part of relations: id → "kind target"."""
    pairs = {id: pair.split() for id, pair in targets.items()}
    rows = (
        f'<Relationship Id="{id}" Type="{RELATIONS}/{kind}" Target="{target}"/>'
        for id, (kind, target) in pairs.items()
    )
    return f'<Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships">{"".join(rows)}</Relationships>'


def paragraph(text: str, properties: str = "") -> str:
    return f'<w:p>{properties}<w:r><w:t xml:space="preserve">{text}</w:t></w:r></w:p>'


def docx(body: str, **parts: str) -> bytes:
    """A Word document; ``parts`` are others of its kinds of part, such as ``footnotes``, by what they hold."""
    others = {f"word/{kind}.xml": f"<w:{kind} {WORD}>{content}</w:{kind}>" for kind, content in parts.items()}
    links = relations(**{kind: f"{kind} {kind}.xml" for kind in parts})
    return packed(
        {
            "_rels/.rels": relations(main="officeDocument word/document.xml"),
            "[Content_Types].xml": '<Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types"/>',
            "word/document.xml": f"<w:document {WORD}><w:body>{body}</w:body></w:document>",
            "word/_rels/document.xml.rels": links,
            **others,
        }
    )


def shape(*lines: str, placeholder: str = "") -> str:
    kind = f'<p:nvSpPr><p:nvPr><p:ph type="{placeholder}"/></p:nvPr></p:nvSpPr>' if placeholder else ""
    text = "".join(f"<a:p><a:r><a:t>{line}</a:t></a:r></a:p>" for line in lines)
    return f"<p:sp>{kind}<p:txBody>{text}</p:txBody></p:sp>"


def pptx(*slides: str, **parts: str) -> bytes:
    """A presentation, whose slides are stored last first; ``parts`` (``notesSlide``, ``chart``) belong to the first slide."""
    number = range(1, len(slides) + 1)
    ids = "".join(f'<p:sldId id="{255 + n}" r:id="s{n}"/>' for n in number)
    return packed(
        {
            "_rels/.rels": relations(main="officeDocument /ppt/presentation.xml"),
            "ppt/presentation.xml": f"<p:presentation {SLIDE}><p:sldIdLst>{ids}</p:sldIdLst></p:presentation>",
            "ppt/_rels/presentation.xml.rels": relations(
                **{f"s{n}": f"slide slides/slide{len(slides) - n}.xml" for n in number}
            ),
            **{
                f"ppt/slides/slide{len(slides) - n}.xml": f"<p:sld {SLIDE}>{slide}</p:sld>"
                for n, slide in zip(number, slides, strict=True)
            },
            f"ppt/slides/_rels/slide{len(slides) - 1}.xml.rels": relations(
                **{kind: f"{kind} ../{kind}.xml" for kind in parts}
            ),
            **{f"ppt/{kind}.xml": f"<p:x {SLIDE}>{content}</p:x>" for kind, content in parts.items()},
        }
    )


def epub(*chapters: str, **parts: str) -> bytes:
    """A book; its chapters are stored last first, and ``parts`` are those of ``META-INF``."""
    names = [f"c{number}.xhtml" for number in range(len(chapters))]
    items = "".join(f'<item id="{name}" href="text/{name}"/>' for name in reversed(names))
    spine = "".join(f'<itemref idref="{name}"/>' for name in names)
    return packed(
        {
            "META-INF/container.xml": '<container><rootfiles><rootfile full-path="OPS/book.opf"/></rootfiles></container>',
            "OPS/book.opf": f"<package><metadata><title>The Book</title></metadata><manifest>{items}</manifest>"
            f"<spine>{spine}</spine></package>",
            **{
                f"OPS/text/{name}": f"<html><head><title>file {name}</title></head><body>{chapter}</body></html>"
                for name, chapter in zip(names, chapters, strict=True)
            },
            **{f"META-INF/{name}.xml": content for name, content in parts.items()},
        }
    )
