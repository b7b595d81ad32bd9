"""The findings of a check for a person: text with bars, and a plot."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from ..errors import Stopped
from ..row import THREATS
from ..text import counted, escaped
from .check import SHOWN, Duplicates, Findings, ListFindings

BAR = 40  # characters of the longest
EIGHTHS = " ▏▎▍▌▋▊▉"
COMBINATIONS = 8  # that are written or drawn


def check_text(findings: Findings) -> str:
    """Format the findings of a check; lines that need attention begin with !."""
    longest = max(number for one in findings.lists for number in one.labels.values())
    lines = [line for one in findings.lists for line in _list_lines(one, longest)]
    if findings.unlisted:
        lines += [f"  {counted(findings.unlisted, 'image')} on disk that no list names", ""]
    lines += ["duplicates:"]
    lines += _duplicate_lines("the same bytes", findings.exact)
    lines += _duplicate_lines("the same bytes, or alike", findings.near)
    if findings.false_match_rate is not None:
        lines.append(
            f"  false matches: {findings.unlike_matched} of {findings.unlike_pairs} pairs whose labels "
            f"differ, so at most {findings.false_match_rate:.1e} of pairs (95 % certain)"
        )
    return "\n".join(lines)


def _list_lines(one: ListFindings, longest: int) -> Iterator[str]:
    yield f"{one.name}: {escaped(one.source)}"
    yield f"  {counted(one.images, 'image')}, {_rate(one)}"
    for threat, number in one.labels.items():
        yield f"  {threat:<9} {number:>8} {_bar(number, longest)}".rstrip()
    for threat, number in one.unknown.items():
        yield f"  {threat} is unknown of {number} images"
    yield f"  combinations: {_some([f'{name} {number}' for name, number in one.combinations.items()])}"
    if one.splits:
        yield f"  splits: {', '.join(f'{name} {number}' for name, number in one.splits.items())}"
    if one.missing:
        yield f"! {one.missing} are not on disk: {_some(one.missing_names)}"
    if one.ambiguous:
        yield f"! {one.ambiguous} fit several images, and are left out: {_some(one.ambiguous_names)}"
    if one.repeated:
        yield f"! {one.repeated} name an image that another name has"
    if one.unreadable:
        kinds = ", ".join(f"{number} {status}" for status, number in one.unreadable.items())
        yield f"! cannot be decoded: {kinds}"
        yield from (f"    {escaped(image)}" for image in one.unreadable_images)
    yield ""


def _rate(one: ListFindings) -> str:
    if not one.positives:
        return "none with a threat"
    return (
        f"{one.positives} with a threat ({100 * one.positive_rate:.3g} %, "
        f"1 : {one.benign_per_positive:.3g}), {one.labels_per_positive:.2f} labels each"
    )


def _bar(number: int, longest: int) -> str:
    whole, rest = divmod(round(8 * BAR * number / max(longest, 1)), 8)
    return "█" * whole + EIGHTHS[rest].strip()


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - COMBINATIONS} more" if len(names) > COMBINATIONS else ""
    return escaped(", ".join(names[:COMBINATIONS])) + more


def _duplicate_lines(what: str, found: Duplicates) -> Iterator[str]:
    if not found.groups:
        yield f"  {what}: none"
        return
    yield f"  {what}: groups {found.groups}, images {found.images}, in the largest {found.largest}"
    for parts, number in found.crossing.items():
        yield f"! groups that cross {parts}: {number}"
    if found.conflicting:
        yield f"! groups whose images differ in their labels: {found.conflicting}"
    yield from (f"    {escaped('  '.join(example))}" for example in found.examples[:SHOWN])


def plot(findings: Findings, path: Path) -> None:
    """Draw how often each class and combination occurs in each list; the extension gives the format.

    Raises Stopped if the file cannot be written.
    """
    from matplotlib.figure import Figure  # without pyplot: no display, no global state
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    combinations = [name for name in findings.lists[0].combinations if name != "benign"][:COMBINATIONS]
    width = 0.8 / len(findings.lists)
    for k, one in enumerate(findings.lists):
        shift = width * (k - (len(findings.lists) - 1) / 2)
        told = f"{one.name}: {one.positives} with a threat, {one.images - one.positives} benign"
        at = [x + shift for x in range(len(THREATS))]
        bars = left.bar(at, list(one.labels.values()), width, label=told)
        left.bar_label(bars, fontsize=8)
        shares = [100 * one.combinations.get(name, 0) / max(one.positives, 1) for name in combinations]
        right.barh([y + shift for y in range(len(combinations))], shares, width)
    left.set_xticks(range(len(THREATS)), THREATS)
    left.set(ylabel="images", title="Images that hold each threat")
    left.yaxis.set_major_locator(MaxNLocator(integer=True))  # there is no half image
    left.margins(y=0.25)  # room for the legend
    left.legend(loc="upper left", fontsize=8)
    right.set_yticks(range(len(combinations)), combinations)
    right.invert_yaxis()
    right.set(xlabel="share of images with a threat (%)", title="Threats in the same image")
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        raise Stopped(f"the picture {path} cannot be written: {error}") from error
