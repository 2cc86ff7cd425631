"""Archives on disk: a model file packed, an archive unpacked, and what an archive's bytes are."""

from __future__ import annotations

from pathlib import Path
from time import perf_counter

import msgspec

from gossamer.archive.reader import LIMIT_BYTES, pieces, read_header, read_index
from gossamer.archive.spans import Span, outside, spans
from gossamer.archive.tables import Decoder
from gossamer.archive.unpacking import file_bytes, model_bytes, read_archive
from gossamer.errors import ArchiveError, ModelError, OutputError
from gossamer.nouns.model import write_file


class ArchiveBytes(msgspec.Struct, frozen=True):
    """Where an archive's bytes go; header, graph and tensors make up the archive.

    Attributes:
        model: of the ONNX file.
        graph: of all that is no tensor's numbers: nodes, names, shapes, and how tensors are put back.
        tensors: numbers of tensors, and the tables that code them.
    """

    model: int
    archive: int
    header: int
    graph: int
    tensors: int


class ArchivedTensor(msgspec.Struct, frozen=True):
    """A tensor in an archive; of those that were put together, each has its share of bytes."""

    name: str
    shape: tuple[int, ...]
    model_bytes: int
    archive_bytes: float
    bits_per_weight: float


class Archive(msgspec.Struct, frozen=True):
    """What `gossamer inspect` tells of an archive.

    Attributes:
        base: SHA-256 of the model that it was packed against, or "".
        tensors: largest first.
    """

    bytes: ArchiveBytes
    bits_per_weight: float
    base: str
    tensors: tuple[ArchivedTensor, ...]


class PackFacts(msgspec.Struct, frozen=True):
    """What `gossamer pack` tells.

    Attributes:
        bits_per_weight: of the whole archive, for each number of a tensor in it; 0 if there is none.
        order0_bits_per_weight: what the numbers would take if each tensor were coded by its own frequencies, these,
            the graph and the header for nothing; below it, only knowing more than frequencies helps.
        base_saved: bytes that the base saved; 0 if none was given or it saved none, and the archive does not need it.
    """

    bytes: ArchiveBytes
    bits_per_weight: float
    order0_bits_per_weight: float
    seconds: float
    base_saved: int = 0


def pack_file(model: str | Path, out: str | Path, base: str | Path | None = None) -> PackFacts:
    """Pack an ONNX file; `unpack_file` gives the same bytes back.

    Args:
        model: an ONNX file, or an archive, to be packed anew.
        out: the archive, written to a temporary name first and renamed.
        base: an archive or ONNX file that whoever unpacks will have, such as the version before.

    Raises:
        ModelError: not an ONNX file, or one whose weights lie in other files.
        ArchiveError: the base is no whole archive.
        OutputError: the archive cannot be written.
    """
    from gossamer.archive.pack import pack  # who only reads need not wait for it

    begin = perf_counter()
    data = model_bytes(Path(model))
    _check_inside(data, Path(model))
    target = _target(out, model, base)
    packed, saved = pack(data), 0
    if base is not None:
        before = model_bytes(Path(base))
        _check_inside(before, Path(base))
        update = pack(data, before)
        saved = max(len(packed.data) - len(update.data), 0)
        packed = update if saved else packed
    write_file(target, packed.data)
    tensors = len(packed.data) - packed.header_bytes - packed.graph_bytes
    return PackFacts(
        ArchiveBytes(len(data), len(packed.data), packed.header_bytes, packed.graph_bytes, tensors),
        _each(8 * len(packed.data), packed.numbers),
        _each(packed.order0_bits, packed.numbers),
        perf_counter() - begin,
        saved,
    )


def unpack_file(
    archive: str | Path,
    out: str | Path,
    base: str | Path | None = None,
    most: int = LIMIT_BYTES,
    processes: int = 1,
) -> int:
    """Write the ONNX file that was packed, and return its bytes.

    Args:
        out: written to a temporary name first and renamed.
        base: see `pack_file`.
        most: bytes of a model that are allowed.
        processes: see `read_archive`.

    Raises:
        ArchiveError: not an archive, damaged, or of another base.
        OutputError: the file cannot be written.
    """
    return write_file(_target(out, archive, base), read_archive(archive, base, most, processes))


def inspect_archive(archive: str | Path, base: str | Path | None = None) -> Archive:
    """Where the bytes of an archive go, tensor by tensor.

    Raises:
        ArchiveError: see `unpack_file`.
    """
    from gossamer.archive.sources import weights_in

    data, before = file_bytes(Path(archive)), None if base is None else model_bytes(Path(base))
    try:
        header = read_header(data)
        index = read_index(data, header, Decoder)
        model = b"".join(pieces(data, header, index, before, Decoder))
    except ArchiveError as error:
        raise ArchiveError(f"{archive}: {error}") from None
    named = {span.offset: span for span in spans(model)}
    coded = [
        sum(section.length for section in header.sections[stream.section : stream.section + len(stream.chunks)])
        for stream in index.streams
    ]
    tensors, at, numbers = [], 0, 0
    for cut in index.cuts:
        at += cut.gap
        span = named.get(at, Span(at, cut.length, 0, (cut.length,), "?"))
        stream = index.streams[cut.stream]
        share = coded[cut.stream] * cut.length / max(sum(stream.chunks), 1)
        weights = weights_in(span, stream.kind, stream.unit)
        tensors.append(ArchivedTensor(span.name, span.shape, cut.length, share, _each(8 * share, weights)))
        at += cut.length
        numbers += weights
    first = header.sections[0]
    return Archive(
        ArchiveBytes(len(model), len(data), first.offset, first.length, len(data) - first.offset - first.length),
        _each(8 * len(data), numbers),
        header.base.hex(),
        tuple(sorted(tensors, key=lambda one: -one.archive_bytes)),
    )


def _each(bits: float, numbers: int) -> float:
    return bits / numbers if numbers else 0.0


def _target(out: str | Path, *given: str | Path | None) -> Path:
    """Where to write; never onto what is read."""
    path = Path(out)
    if not path.name or path.is_dir():
        raise OutputError(f"{out or 'the output'} names no file; give one with -o")
    if any(one is not None and path.resolve() == Path(one).resolve() for one in given):
        raise OutputError(f"{path} is read as well, and would be lost; choose another -o")
    return path


def _check_inside(data: bytes, path: Path) -> None:
    """An archive is one file: weights beside the model would be lost."""
    try:
        reason = outside(data)
    except ModelError as error:
        raise ModelError(
            f"{path} is not an ONNX file; of others, gossamer.save(gossamer.load(...)) makes one"
        ) from error
    if reason:
        lies = "lies in another file" in reason
        mend = "gossamer.save(gossamer.load(...), path) makes one file" if lies else "export the model again"
        raise ModelError(f"{path} cannot be packed: {reason}; {mend}")
