"""MkDocs hook: fails a strict build if a page is not valid HTML, or has a broken link or an image without alt text.

`python tools/docs/check.py build/site` checks a site that is already built.
"""

import logging
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit
from xml.etree.ElementTree import Element

import html5lib

THEME_FAULTS = re.compile(r' tabindex=""|(?<=type="checkbox") (id="\w+") autocomplete="off"')
SERVED_ONLY = "404.html"  # its links start with "/", because a server shows it at any address


def on_post_page(output: str, **_) -> str:
    """Removes two attributes of mkdocs-material's templates that are not valid HTML."""
    return THEME_FAULTS.sub(lambda found: f" {found[1]}" if found[1] else "", output)


def on_post_template(output_content: str, **_) -> str:
    return on_post_page(output_content)


def on_post_build(config, **_) -> None:
    for fault in faults(Path(config.site_dir)):
        logging.getLogger("mkdocs.plugins.check").warning(fault)


def faults(site: Path) -> Iterator[str]:
    """Yields one line per fault on the site's pages."""
    pages, errors = {}, {}
    for path in sorted(site.rglob("*.html")):
        parser = html5lib.HTMLParser(html5lib.getTreeBuilder("etree"), namespaceHTMLElements=False)
        pages[path.resolve()] = parser.parse(path.read_text(encoding="utf-8"))
        errors[path.resolve()] = [f"line {line}: {code}" for (line, _), code, _ in parser.errors]
    ids = {path: [element.get("id") for element in page.iter() if element.get("id")] for path, page in pages.items()}
    for path, page in pages.items():
        found = errors[path] + [f"{n} elements have the id {name}" for name, n in Counter(ids[path]).items() if n > 1]
        if path.name != SERVED_ONLY:
            found += [fault for element in page.iter() for fault in faults_of(element, path, ids)]
        yield from (f"{path.relative_to(site.resolve())}: {fault}" for fault in found)


def faults_of(element: Element, page: Path, ids: dict[Path, list[str]]) -> Iterator[str]:
    if element.tag == "img" and not element.get("alt"):
        yield f"no alt text: {element.get('src')}"
    named = element.get("aria-label") or element.get("title") or "".join(element.itertext()).strip()
    if element.tag == "a" and element.get("href") and not named and element.find(".//img[@alt]") is None:
        yield f"a link without a text: {element.get('href')}"
    address = element.get("href" if element.tag in ("a", "link") else "src")
    if not isinstance(element.tag, str) or address is None:
        return
    target = urlsplit(address)
    if target.scheme or target.netloc:
        if element.tag != "a":
            yield f"loaded from another host: {address}"
        return
    file = (page.parent / unquote(target.path)).resolve() if target.path else page
    if not file.is_file():
        yield f"broken link: {address}"
    elif target.fragment and file in ids and unquote(target.fragment) not in ids[file]:
        yield f"broken anchor: {address}"


if __name__ == "__main__":
    found = list(faults(Path(sys.argv[1])))
    print("\n".join(found))
    sys.exit(bool(found))
