"""Links of a built site: each leads to a page and a place that are there, and nothing is loaded from elsewhere."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

LOADED = {("script", "src"), ("img", "src"), ("source", "src"), ("iframe", "src"), ("video", "src"), ("object", "data")}
LOADED_LINKS = {"stylesheet", "icon", "shortcut icon", "preload", "manifest", "modulepreload", "prefetch"}
STYLE_URL = re.compile(r"(?:url\(|@import)\s*['\"]?(https?:)?//", re.IGNORECASE)


class Page(NamedTuple):
    """What a page offers and wants: its places (ids), the links to follow, the files that it loads, pictures without a text."""

    places: set[str]
    links: list[str]
    loaded: list[str]
    mute: list[str]


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.page = Page(set(), [], [], [])

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.page.places.update(given[name] for name in ("id", "name") if given.get(name))
        self.page.loaded.extend(value for name, value in given.items() if (tag, name) in LOADED)
        if tag == "link" and given.get("rel", "").lower() in LOADED_LINKS:
            self.page.loaded.append(given.get("href", ""))
        elif tag == "a" and "href" in given:
            self.page.links.append(given["href"])
        if tag == "img" and not given.get("alt", "").strip():
            self.page.mute.append(given.get("src", "")[:80])


def read_page(text: str) -> Page:
    """What a page's HTML offers and wants."""
    reader = _Reader()
    reader.feed(text)
    return reader.page


def problems_of(site: Path) -> list[str]:
    """What is wrong with the links of a site, a line each; empty where all is well.

    Args:
        site: a folder of HTML. Links to other sites are not followed.
    """
    pages = {file: read_page(file.read_text("utf-8")) for file in sorted(site.rglob("*.html"))}
    problems = []
    for file, page in pages.items():
        name = file.relative_to(site)
        problems += [f"{name}: picture without alternative text: {source}" for source in page.mute]
        problems += [f"{name}: loads {source} from elsewhere" for source in page.loaded if _is_elsewhere(source)]
        for link in dict.fromkeys([*page.links, *(source for source in page.loaded if not _is_elsewhere(source))]):
            if why := _broken(link, file, pages):
                problems.append(f"{name}: {link}: {why}")
    for style in sorted(site.rglob("*.css")):
        if STYLE_URL.search(style.read_text("utf-8")):
            problems.append(f"{style.relative_to(site)}: loads from elsewhere")
    return problems


def _is_elsewhere(source: str) -> bool:
    parts = urlsplit(source)
    return bool(parts.netloc) or parts.scheme in ("http", "https")


def _broken(link: str, file: Path, pages: dict[Path, Page]) -> str:
    """Why a link leads nowhere; "" where it does not, or leads to another site."""
    parts = urlsplit(link)
    if parts.scheme or parts.netloc:
        return ""
    target = (file.parent / unquote(parts.path)).resolve() if parts.path else file
    if not target.is_file():
        return "no such file"
    place = unquote(parts.fragment)
    if place and target in pages and place not in pages[target].places:
        return f"no place {place!r} on that page"
    return ""
