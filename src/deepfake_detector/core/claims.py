"""What each known layout of a data set says of the files that it holds. `datasets` describes and joins the layouts."""

from __future__ import annotations

import posixpath
import re
import unicodedata
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from deepfake_detector.core.labels import DFDC_NAME, MANIFEST_NAMES, is_video, read_dfdc, read_manifest

LAYOUTS = ("manifest", "DFDC", "FaceForensics++", "Celeb-DF", "real/ and fake/ folders")  # in order of precedence

_FFPP = re.compile(
    r"(?P<root>(?:.*/)?)(?P<kind>original|manipulated)_sequences/(?P<method>[^/]+)/(?P<part>raw|c\d+|masks)/videos/[^/]+"
)
_FFPP_NAMES = {  # (of actors, manipulated) -> the stem's source identities
    (False, False): re.compile(r"(\d+)"),
    (False, True): re.compile(r"(\d+)_(\d+)"),
    (True, False): re.compile(r"(\d+)__(.+)"),
    (True, True): re.compile(r"(\d+)_(\d+)__(.+)__[^_]+"),
}
_ACTORS = {"actors", "DeepFakeDetection"}
_CELEBDF = re.compile(r"(?P<root>(?:.*/)?)(?P<method>Celeb-real|Celeb-synthesis|YouTube-real)/[^/]+")
_CELEBDF_NAMES = {
    "Celeb-real": re.compile(r"(id\d+)_(\d+)"),
    "Celeb-synthesis": re.compile(r"(id\d+)_(id\d+)_(\d+)"),
    "YouTube-real": re.compile(r"\d+"),
}


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What one layout says of one path. name and original: names by which fakes find their real video."""

    layout: str
    folder: str
    path: str
    label: int
    dataset: str
    method: str
    where: str
    identities: tuple[str, ...] = ()
    name: str = ""
    original: str = ""
    split: str = ""


class Listing:
    """The visible files, and what was noticed on the way through them."""

    def __init__(self, sizes: Mapping[str, int], read: Callable[[str], bytes]) -> None:
        self.sizes = {name: size for name, size in sizes.items() if _visible(name)}
        self.read = read
        self.videos = sorted(filter(is_video, self.sizes))
        self.metadata: set[str] = set()  # files read for their labels
        self.misnamed: dict[str, str] = {}  # video in a known layout -> why its sources, and so its group, are unknown
        self.masks: set[str] = set()  # FaceForensics++ keeps videos of masks beside the manipulated ones
        self.ignored_columns: dict[str, None] = {}
        # macOS stores decomposed names; what a text file says is usually composed.
        self._composed = {unicodedata.normalize("NFC", name): name for name in sorted(self.sizes)}

    def stored_name(self, path: str) -> str:
        """The listed name that `path` means; `path` itself when nothing is listed under it."""
        return path if path in self.sizes else self._composed.get(unicodedata.normalize("NFC", path), path)

    def named(self, names: Iterable[str]) -> list[str]:
        """Files anywhere below the root with one of these base names."""
        wanted = set(names)
        return sorted(name for name in self.sizes if posixpath.basename(name).lower() in wanted)

    def has_videos(self, folder: str) -> bool:
        """Whether a video lies in the folder or below it."""
        prefix = f"{folder}/" if folder else ""
        place = bisect_left(self.videos, prefix)
        return place < len(self.videos) and self.videos[place].startswith(prefix)


def _visible(name: str) -> bool:
    parts = name.split("/")  # a name that ends in "/" is a folder's placeholder in object storage
    hidden = (part == "__MACOSX" or (part.startswith(".") and part not in (".", "..")) for part in parts)
    return bool(parts[-1]) and not any(hidden)


def manifests(listing: Listing) -> Iterator[Claim]:
    for file in listing.named(MANIFEST_NAMES):
        listing.metadata.add(file)
        labels = read_manifest(listing.read(file), file)
        listing.ignored_columns |= dict.fromkeys(f"{column!r} of {file}" for column in labels.ignored)
        for row in labels.rows:
            yield Claim(
                layout="manifest",
                folder=file,
                path=listing.stored_name(row.path),
                label=row.label,
                dataset="manifest",
                method=label_name(row.label),
                where=row.where,
                identities=(f"group:{row.group}",) if row.group else (),
                split=row.split,
            )


def dfdc(listing: Listing) -> Iterator[Claim]:
    for file in listing.named([DFDC_NAME]):
        labels = read_dfdc(listing.read(file), file, strict=listing.has_videos(posixpath.dirname(file)))
        if labels is None:
            continue
        listing.metadata.add(file)
        for row in labels.rows:
            name = posixpath.basename(row.path)
            yield Claim(
                layout="DFDC",
                folder=_folder(posixpath.dirname(file)),
                path=listing.stored_name(row.path),
                label=row.label,
                dataset="dfdc",
                method=label_name(row.label),
                where=row.where,
                identities=tuple(f"dfdc:{source}" for source in (name, row.original) if source),
                name=f"dfdc:{name}",
                original=f"dfdc:{row.original}" if row.original else "",
            )


def ffpp(listing: Listing) -> Iterator[Claim]:
    for path in listing.videos:
        match = _FFPP.fullmatch(path)
        if not match:
            continue
        method, part, fake = match["method"], match["part"], match["kind"] == "manipulated"
        if part == "masks":
            listing.masks.add(path)
            continue
        actors = method in _ACTORS
        pattern = _FFPP_NAMES[actors, fake]
        found = pattern.fullmatch(stem_of(path))
        if not found:
            listing.misnamed[path] = f"FaceForensics++ name does not match {pattern.pattern}: sources unknown"
            continue
        sources = found.groups()[: 1 + fake]
        scene = f"__{found.groups()[-1]}" if actors else ""
        own = f"ffpp:{part}:{'actors' if actors else 'youtube'}:{sources[0]}{scene}"
        yield Claim(
            layout="FaceForensics++",
            folder=_folder(match["root"]),
            path=path,
            label=int(fake),
            dataset="ffpp",
            method=method,
            where=path,
            identities=tuple(f"ffpp:{'actors' if actors else 'youtube'}:{source}" for source in sources),
            name="" if fake else own,
            original=own if fake else "",
        )


def celebdf(listing: Listing) -> Iterator[Claim]:
    for path in listing.videos:
        match = _CELEBDF.fullmatch(path)
        if not match:
            continue
        method, stem = match["method"], stem_of(path)
        found = _CELEBDF_NAMES[method].fullmatch(stem)
        if not found:
            listing.misnamed[path] = f"Celeb-DF name does not match {_CELEBDF_NAMES[method].pattern}: sources unknown"
            continue
        fake = method == "Celeb-synthesis"
        yield Claim(
            layout="Celeb-DF",
            folder=_folder(match["root"]),
            path=path,
            label=int(fake),
            dataset="celebdf",
            method=method,
            where=path,
            identities=tuple(f"celebdf:{source}" for source in found.groups()[:-1]),
            name="" if fake else f"celebdf:{stem}",
            original=f"celebdf:{found[1]}_{found[3]}" if fake else "",
        )


def folders(listing: Listing) -> Iterator[Claim]:
    held = []
    for path in listing.videos:
        if path in listing.masks or path in listing.misnamed:
            continue
        *parents, _ = path.split("/")
        depths = [depth for depth, part in enumerate(parents) if part.lower() in ("real", "fake")]
        if depths:  # the innermost decides
            held.append((path, "/".join(parents[: depths[-1]]), parents[depths[-1]].lower() == "fake"))
    reals = {(base, stem_of(path)) for path, base, fake in held if not fake}
    for path, base, fake in held:
        stem = stem_of(path)
        if fake:
            pieces = stem.split("__")
            prefixes = ["__".join(pieces[:count]) for count in range(len(pieces), 0, -1)]  # the longest first
            stem = next((prefix for prefix in prefixes if (base, prefix) in reals), pieces[0] or stem)
        name = f"folders:{base}:{stem}"
        yield Claim(
            layout="real/ and fake/ folders",
            folder=_folder(base),
            path=path,
            label=int(fake),
            dataset="folders",
            method=label_name(int(fake)),
            where=path,
            identities=(name,),
            name="" if fake else name,
            original=name if fake else "",
        )


def _folder(path: str) -> str:
    return f"{path.strip('/')}/" if path else "./"


def label_name(label: int) -> str:
    return "fake" if label else "real"


def stem_of(path: str) -> str:
    return posixpath.splitext(posixpath.basename(path))[0]
