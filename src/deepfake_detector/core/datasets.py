"""Which of the listed files are labelled videos: every known layout below a folder, recognised and joined.

    manifest       manifest.csv, manifest.jsonl, labels.csv or labels.jsonl: path, label and, if known, group, split
    DFDC           folders with metadata.json; `original` may lie in another part, for names are unique over parts.
                   A metadata.json that describes no video is another program's, and ignored
    FaceForensics++  original_sequences/<source>/<compression>/videos/000.mp4 and
                   manipulated_sequences/<Method>/<compression>/videos/000_003.mp4 (target_source), with the
                   DeepFakeDetection set of actors: 01__talking.mp4 and 01_02__talking__HASH.mp4
    Celeb-DF       Celeb-real/id0_0001.mp4, Celeb-synthesis/id0_id1_0001.mp4, YouTube-real/00001.mp4
    real/ and fake/  folders side by side, at any depth and in any case. A fake belongs to the real video whose
                   stem it has, alone or followed by "__" and anything: fake/x__swapped.mp4 goes with real/x.mp4.
                   Fakes x__1 and x__2 go together even where x itself is not there.

Where layouts describe the same file, the first of this order decides label, name and split. A manifest that
names a group decides the group too; one that does not leaves it to the layout below it.
"""

from __future__ import annotations

import posixpath
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from deepfake_detector.core.claims import (
    LAYOUTS,
    Claim,
    Listing,
    celebdf,
    dfdc,
    ffpp,
    folders,
    label_name,
    manifests,
    stem_of,
)
from deepfake_detector.core.errors import DataError
from deepfake_detector.core.labels import MANIFEST_NAMES, is_text
from deepfake_detector.core.layout import is_object_name
from deepfake_detector.core.outcomes import Outcome, VideoOutcome

ADDRESSABLE = "expected a path without empty, '.' or '..' parts"


@dataclass(frozen=True, kw_only=True)
class FoundVideo:
    """A labelled video that is there.

    path: relative to the listing's root; size: bytes; label: 1 is fake; identities: names of the sources in it,
    two videos with one in common belong together; original: key of the real video it was made from, "" when
    that is unknown or not there; split: where the data set fixes one, else "".
    """

    key: str
    path: str
    size: int
    label: int
    dataset: str
    method: str
    identities: tuple[str, ...] = ()
    original: str = ""
    split: str = ""


@dataclass(frozen=True)
class Found:
    """What find_videos gives: videos and lost are sorted by key and hold every video and every label between them
    (masks of FaceForensics++ apart); lines say what was found, for people.
    """

    videos: list[FoundVideo]
    lost: list[VideoOutcome]
    lines: list[str]


def find_videos(sizes: Mapping[str, int], read: Callable[[str], bytes], where: str) -> Found:
    """Recognise and join all layouts among the listed files.

    sizes: name relative to the videos folder -> bytes; read: gives a small metadata file's bytes; where: the
    folder's URI, for messages. The result does not depend on the order of `sizes`. Raises DataError on malformed
    metadata, on labels that contradict each other, and when no labelled video is there.
    """
    for name in sizes:
        if not is_text(name):
            raise DataError(f"{where}: file name {name!a}: expected UTF-8")
    listing = Listing(sizes, read)
    layers = [_merge(find(listing)) for find in (manifests, dfdc, ffpp, celebdf, folders)]
    claims: dict[str, Claim] = {}
    for layer in reversed(layers):  # the weakest first, so that the stronger one writes over it
        for path, claim in layer.items():
            claims[path] = _over(claim, claims.get(path))
    present = [claim for path, claim in sorted(claims.items()) if path in listing.sizes and is_object_name(path)]
    if not present:
        raise DataError(_nothing(listing, list(claims), where))
    keys = _keys(claims.values())
    lost = _lost(listing, claims, keys)
    lines = [_line(layout, layer, listing) for layout, layer in zip(LAYOUTS, layers, strict=True) if layer]
    lines += _remarks(listing, claims, sum(map(len, layers)) - len(claims))
    return Found(sorted(_videos(present, keys, listing), key=lambda video: video.key), lost, lines)


def _merge(claims: Iterable[Claim]) -> dict[str, Claim]:
    """One claim per path; a path described twice in one layout keeps all identities, if label and split agree."""
    merged: dict[str, Claim] = {}
    for claim in claims:
        before = merged.get(claim.path)
        if before is None:
            merged[claim.path] = claim
            continue
        for what, one, other in (
            ("label", label_name(before.label), label_name(claim.label)),
            ("split", before.split, claim.split),
        ):
            if one != other:
                raise DataError(
                    f"{claim.where}: {claim.path}: {what} {other or 'missing'}: "
                    f"expected {one or 'none'}, as in {before.where}"
                )
        identities = tuple(dict.fromkeys(before.identities + claim.identities))
        merged[claim.path] = replace(before, identities=identities)
    return merged


def _over(claim: Claim, below: Claim | None) -> Claim:
    """`claim` with what it leaves open taken from the claim of a weaker layout on the same file."""
    if below is None or claim.layout != "manifest":
        return claim
    if claim.identities:
        return replace(claim, name=below.name)
    return replace(claim, identities=below.identities, name=below.name, original=below.original)


def _keys(claims: Iterable[Claim]) -> dict[str, str]:
    """path -> dataset/method/stem; where two would be the same, the whole path takes the stem's place."""
    by_path = {claim.path: claim for claim in claims}
    keys = {path: f"{claim.dataset}/{claim.method}/{stem_of(path)}" for path, claim in by_path.items()}
    while len(counts := Counter(keys.values())) < len(keys):
        keys = {
            path: key if counts[key] == 1 else f"{by_path[path].dataset}/{by_path[path].method}/{path}"
            for path, key in keys.items()
        }
    return keys


def _videos(present: list[Claim], keys: Mapping[str, str], listing: Listing) -> Iterator[FoundVideo]:
    originals: dict[str, str] = {}
    for claim in present:
        if claim.label == 0 and claim.name:
            originals.setdefault(claim.name, keys[claim.path])
    for claim in present:
        yield FoundVideo(
            key=keys[claim.path],
            path=claim.path,
            size=listing.sizes[claim.path],
            label=claim.label,
            dataset=claim.dataset,
            method=claim.method,
            identities=claim.identities,
            original=originals.get(claim.original, "") if claim.label == 1 else "",
            split=claim.split,
        )


def _lost(listing: Listing, claims: Mapping[str, Claim], keys: Mapping[str, str]) -> list[VideoOutcome]:
    missing = [
        VideoOutcome(
            key=keys[path], label=claim.label, split="", outcome=Outcome.MISSING_FILE, detail=claim.where, path=path
        )
        for path, claim in claims.items()
        if path not in listing.sizes
    ]
    unnamed = [
        VideoOutcome(
            key=keys[path],
            label=claim.label,
            split="",
            outcome=Outcome.BAD_NAME,
            detail=f"{path!r}: {ADDRESSABLE}",
            path=path,
        )
        for path, claim in claims.items()
        if path in listing.sizes and not is_object_name(path)
    ]
    unlabelled = [
        VideoOutcome(
            key=f"unlabelled/unknown/{path}",
            label=None,
            split="",
            outcome=Outcome.UNLABELLED,
            detail=listing.misnamed.get(path, ""),
            path=path,
        )
        for path in listing.videos
        if path not in claims and path not in listing.masks
    ]
    return sorted(missing + unnamed + unlabelled, key=lambda outcome: outcome.key)


def _line(layout: str, layer: Mapping[str, Claim], listing: Listing) -> str:
    folders = sorted({claim.folder for claim in layer.values()})
    shown = ", ".join(folders[:3]) + (f" and {len(folders) - 3} more" if len(folders) > 3 else "")
    counts = Counter(claim.label for path, claim in layer.items() if path in listing.sizes)
    missing = sum(path not in listing.sizes for path in layer)
    return f"{layout} in {shown}: {counts[0]} real, {counts[1]} fake" + (f", {missing} not there" if missing else "")


def _remarks(listing: Listing, claims: Mapping[str, Claim], overlaps: int) -> Iterator[str]:
    if overlaps:
        yield f"described by more than one layout: {overlaps}, the first of {', '.join(LAYOUTS)} decides"
    unlabelled = sum(path not in claims for path in listing.videos) - sum(path not in claims for path in listing.masks)
    if unlabelled:
        yield f"videos without a label: {unlabelled}"
    unnamed = sum(path in listing.sizes and not is_object_name(path) for path in claims)
    if unnamed:
        yield f"labelled videos with names that are no paths: {unnamed}"
    if listing.masks:
        yield f"FaceForensics++ mask videos ignored: {len(listing.masks)}"
    if listing.ignored_columns:
        yield f"columns ignored: {', '.join(listing.ignored_columns)}"
    others = listing.sizes.keys() - set(listing.videos) - listing.metadata - claims.keys()
    if others:
        counts = Counter(posixpath.splitext(name)[1].lower() or "no extension" for name in sorted(others))
        shown = ", ".join(f"{count} {suffix}" for suffix, count in counts.most_common(8))
        yield f"other files ignored: {shown}" + (", ..." if len(counts) > 8 else "")


def _nothing(listing: Listing, claimed: list[str], where: str) -> str:
    looked = (
        "DFDC folders with metadata.json, FaceForensics++'s original_sequences and manipulated_sequences, Celeb-DF, "
        f"folders named real and fake, or {', '.join(sorted(MANIFEST_NAMES))}"
    )
    if claimed:
        gone = f"{where}: none of the {len(claimed)} labelled videos can be read, for example {min(claimed)}"
        return f"{gone}: {'not there' if min(claimed) not in listing.sizes else ADDRESSABLE}"
    if not listing.sizes:
        return f"{where}: no such folder, or no files in it: expected {looked}"
    example = min(listing.videos or listing.sizes)
    there = f"{len(listing.videos)} videos without a label among {len(listing.sizes)} files, for example {example}"
    return f"{where}: {there}: expected {looked}"
