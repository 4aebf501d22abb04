"""What the compilers say of every GPU kernel (registers, stack, spills, shared memory, matrix instructions), and how
many launches the sanitizers of the host compiler have found clean.

docs/kernels.json keeps it for each kernel, docs/kernels.md as tables, with a digest of the sources that it was taken
from. A compiler makes the same of the same sources. So the tests compile only what has changed since (all of it where
the compiler is of another version), and compare what comes out with what is kept (:func:`differences`): a change that
costs registers or spills shows in its diff. After one that is meant:

    make evidence

compiles what has changed, and keeps it.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

from host_shim import build, sanitizers

ROOT = Path(__file__).resolve().parents[1]
KEPT = ROOT / "docs" / "kernels.json"
PAGE = ROOT / "docs" / "kernels.md"
ARCHITECTURES = (80, 90)
AHEAD = (
    ("sm90", "bfloat16", ()),
    ("sm80", "float16", ("--model-sizes-only",)),
    ("sm90", "float32", ("--model-sizes-only",)),
    ("sm100", "bfloat16", ("--model-sizes-only",)),
)
"""Target, dtype and further arguments of each run of triton_ahead.py."""

Row = dict[str, int]
"""``registers``, ``stack`` and ``spilled`` (bytes of a thread), ``matrix`` (instructions in the code), and where it is
known ``shared`` (bytes of a block)."""


class OtherCompilerError(RuntimeError):
    """What is kept is of another version of the compiler: nothing can be compared."""


# --- CUDA C++ -------------------------------------------------------------------------------------------------------

_MATRIX = re.compile(r"\b(?:HMMA|IMMA|DMMA|BMMA|HGMMA|IGMMA|QGMMA)\b")
_NAMESPACES = re.compile(r"losatok(?:_shim)?::cuda::|\(anonymous namespace\)::|\{anonymous\}::")


def plain_names(mangled: Iterable[str]) -> list[str]:
    """Kernels as one writes them: ``conv_norm_kernel<float, ConvShape<7, 8, 1280>>``."""
    text = build.run(["c++filt", *mangled])
    names = []
    for line in text.splitlines():
        name = _NAMESPACES.sub("", line).removeprefix("void ")
        depth, end = 0, len(name)
        for position, character in enumerate(name):  # up to the parameters, the first bracket outside of < >
            depth += (character == "<") - (character == ">")
            if character == "(" and depth == 0:
                end = position
                break
        name = name[:end].replace(" >", ">").replace("__nv_bfloat16", "bfloat16").replace("__half", "float16")
        names.append(name)
    return names


def _tool(name: str) -> str:
    """A CUDA binary tool: Triton brings them along."""
    import triton

    return str(Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name)


def _matrix_instructions(source: Path, compiled: Path) -> Mapping[str, int]:
    """Matrix instructions by mangled kernel, kept beside the object; not looked for where no source asks for them."""
    if not any("mma_sync" in path.read_text() for path in build.sources_of(source)):
        return defaultdict(int)
    kept = compiled.with_suffix(".matrix.json")
    if not kept.is_file():
        counts: dict[str, int] = {}
        for part in build.run([_tool("cuobjdump"), "-sass", str(compiled)]).split("Function : ")[1:]:
            counts[part.split("\n", 1)[0].strip()] = len(_MATRIX.findall(part))
        temporary = kept.with_suffix(f".{os.getpid()}")
        temporary.write_text(json.dumps(counts))
        temporary.replace(kept)
    return json.loads(kept.read_text())


def cuda_rows(source: Path, architecture: int) -> dict[str, Row]:
    """By kernel of ``source``, what ptxas says of it, and its matrix instructions."""
    compiled, said = build.cuda_object(source, architecture)
    matrix = _matrix_instructions(source, compiled)
    parts = re.split(r"Compiling entry function '(\w+)' for 'sm_\d+'", said)[1:]
    rows = {}
    for mangled, name, text in zip(parts[::2], plain_names(parts[::2]), parts[1::2], strict=True):
        memory = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", text)
        registers = re.search(r"Used (\d+) registers", text)
        assert memory, text
        assert registers, text
        spilled = max(int(memory[2]), int(memory[3]))
        rows[f"{source.stem}: {name}"] = {
            "registers": int(registers[1]),
            "stack": int(memory[1]),
            "spilled": spilled,
            "matrix": matrix[mangled],
        }
    return rows


def launched_shared() -> dict[str, int]:
    """By kernel (without its file), the most shared memory that the launchers of all_kernels.cpp ask for."""
    program = build.shim_program(*build.ALL_KERNELS, *build.KERNELS, sanitizer="")
    addresses = {}
    for line in build.run(["nm", str(program)]).splitlines():
        fields = line.split()
        if len(fields) == 3 and fields[1] in "tT":
            addresses[int(fields[0], 16)] = fields[2]
    anchor = next(address for address, name in addresses.items() if name == "losatok_shim_anchor")
    launches: dict[str, int] = {}
    for line in build.run([str(program), "0", "0", "launches"]).splitlines():
        if line.startswith("launch "):
            offset, shared = map(int, line.split()[1:])
            mangled = addresses[anchor + offset]
            launches[mangled] = max(launches.get(mangled, 0), shared)
    return dict(zip(plain_names(launches), launches.values(), strict=True))


# --- Triton ---------------------------------------------------------------------------------------------------------


def ahead_name(target: str, dtype: str, extra: Iterable[str]) -> str:
    """The key of a run of AHEAD in what is kept."""
    return " ".join([target, dtype, *(("model sizes",) if extra else ())])


def triton_rows(compiled: list[dict]) -> dict[str, Row]:
    """The table that triton_ahead.py writes, by kernel and its compile-time choices; alike ones by their number."""
    rows: dict[str, Row] = {}
    for row in compiled:
        name = f"{row['kernel']} {row['constants']} {row['warps']} warps {row['stages']} stages"
        number = sum(key == name or key.startswith(f"{name} #") for key in rows)
        figures = ("registers", "stack", "spilled", "matrix", "shared")
        rows[f"{name} #{number + 1}" if number else name] = {figure: row[figure] for figure in figures}
    return rows


def compile_ahead(target: str, dtype: str, extra: Iterable[str]) -> tuple[list[dict], str]:
    """A run of triton_ahead.py, which needs a process without the interpreter: its table and what it printed.

    Raises:
        RuntimeError: a kernel does not compile, or not as it should; the message holds what was printed.
    """
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "table.json"
        command = [sys.executable, str(ROOT / "tests" / "triton_ahead.py"), "--json", str(table)]
        command += ["--targets", target, "--dtypes", dtype, *extra]
        environment = os.environ | {"TRITON_INTERPRET": "0"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(done.stdout[-4000:] + done.stderr[-4000:])
        return json.loads(table.read_text()), done.stdout


def triton_digest(target: str, dtype: str, extra: Iterable[str]) -> str:
    """16 hex digits: a hash of all that decides what a run of AHEAD gives, Triton's version excepted: the code of all
    Triton kernels and of triton_ahead.py, without comments and docstrings."""
    parts = [ahead_name(target, dtype, extra)]
    for path in (*sorted((ROOT / "triton_kernels").glob("*.py")), ROOT / "tests" / "triton_ahead.py"):
        parts += [path.name, *_code_lines(path.read_text())]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _code_lines(text: str) -> list[str]:
    """The lines of a Python file without docstrings, lines of comment and empty lines, alike in every Python."""
    bodies = [getattr(node, "body", None) for node in ast.walk(ast.parse(text))]
    said: set[int] = set()
    for statement in (part for body in bodies if isinstance(body, list) for part in body if _is_text(part)):
        said.update(range(statement.lineno, (statement.end_lineno or statement.lineno) + 1))
    lines = enumerate(text.splitlines(), 1)
    return [line for number, line in lines if number not in said and line.strip() and not line.lstrip().startswith("#")]


def _is_text(statement: ast.stmt) -> bool:
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )


# --- what is kept ---------------------------------------------------------------------------------------------------


def compilers() -> dict[str, str]:
    """The versions that figures belong to."""
    import triton

    release = re.search(r"V([\d.]+)", build.run([build.nvcc() or "nvcc", "--version"]))
    assert release
    return {"nvcc": release[1], "triton": triton.__version__}


def kept_rows(compiler: str, key: str) -> dict[str, Row]:
    """What is kept of ``compiler`` (``"nvcc"``, ``"triton"``) under ``key``.

    Raises:
        OtherCompilerError: it is of another version.
    """
    kept = json.loads(KEPT.read_text())
    ours, theirs = compilers()[compiler], kept["compilers"][compiler]
    if ours != theirs:
        raise OtherCompilerError(f"docs/kernels.json is of {compiler} {theirs}, this is {ours}")
    return kept[compiler].get(key, {})


def unchanged(compiler: str, key: str, part: str, digest: str) -> bool:
    """Whether what is kept of ``part`` under ``key`` was taken from these sources, by the compiler that is here."""
    kept = json.loads(KEPT.read_text())
    same = kept["compilers"][compiler] == compilers()[compiler]
    return same and kept["digests"][compiler].get(key, {}).get(part) == digest


def sanitizer_unchanged(sanitizer: str) -> bool:
    """Whether the run of ``sanitizer`` that is kept was one of these sources."""
    kept = json.loads(KEPT.read_text())["sanitizers"].get(sanitizer, {})
    return kept.get("digest") == sanitizers.digest(sanitizer)


def collect_sanitizers(kept: Mapping) -> dict[str, dict]:
    """Run the sanitizers whose sources have changed: by sanitizer, the number of clean launches and the digest.

    Raises:
        NotCleanError: a sanitizer has found something.
    """
    return {
        name: kept["sanitizers"][name]
        if sanitizer_unchanged(name)
        else {"launches": sanitizers.launches(name), "digest": sanitizers.digest(name)}
        for name in sanitizers.SCHEDULES
    }


def differences(found: Mapping[str, Row], kept: Mapping[str, Row]) -> list[str]:
    """What is not as it is kept, a line for each kernel; shared memory only where both know it."""
    lines = [f"{name}: not kept" for name in found if name not in kept]
    lines += [f"{name}: no longer there" for name in kept if name not in found]
    for name in found:
        ours, theirs = found[name], kept.get(name, found[name])
        changed = [f for f in ours if f in theirs and ours[f] != theirs[f]]
        lines += [f"{name}: " + ", ".join(f"{f} {theirs[f]} -> {ours[f]}" for f in changed)] if changed else []
    return lines


def collect() -> dict:
    """Compile what has changed since docs/kernels.json was written: its new content."""
    kept = json.loads(KEPT.read_text())
    digests: dict[str, dict[str, dict[str, str]]] = {
        "nvcc": {
            f"sm_{a}": {source.stem: build.cuda_digest(source, a) for source in build.KERNELS} for a in ARCHITECTURES
        },
        "triton": {ahead_name(*run): {"all": triton_digest(*run)} for run in AHEAD},
    }
    work = [
        (source, architecture)
        for source, architecture in product(build.KERNELS, ARCHITECTURES)
        if not unchanged("nvcc", key := f"sm_{architecture}", source.stem, digests["nvcc"][key][source.stem])
    ]
    with ThreadPoolExecutor(2) as pool:
        tables = dict(zip(work, pool.map(lambda item: cuda_rows(*item), work), strict=True))
    shared = launched_shared() if work else {}
    cuda: dict[str, dict[str, Row]] = {f"sm_{architecture}": {} for architecture in ARCHITECTURES}
    for source, architecture in product(build.KERNELS, ARCHITECTURES):
        rows = cuda[f"sm_{architecture}"]
        if (source, architecture) not in tables:
            old = kept["nvcc"][f"sm_{architecture}"].items()
            rows.update((name, row) for name, row in old if name.startswith(f"{source.stem}: "))
            continue
        for name, row in tables[source, architecture].items():
            own = shared.get(name.split(": ", 1)[1])
            rows[name] = row if own is None else row | {"shared": own}
    ahead = {
        (name := ahead_name(*run)): kept["triton"][name]
        if unchanged("triton", name, "all", digests["triton"][name]["all"])
        else triton_rows(compile_ahead(*run)[0])
        for run in AHEAD
    }
    clean = collect_sanitizers(kept)
    return {"compilers": compilers(), "nvcc": cuda, "triton": ahead, "sanitizers": clean, "digests": digests}


# --- the page -------------------------------------------------------------------------------------------------------


def _span(values: Iterable[int]) -> str:
    values = sorted(set(values))
    return "0" if values == [0] else str(values[0]) if len(values) == 1 else f"{values[0]}-{values[-1]}"


def _groups(rows: Mapping[str, Row]) -> dict[str, list[Row]]:
    """Rows of the variants of each kernel."""
    groups: dict[str, list[Row]] = {}
    for name, row in rows.items():
        groups.setdefault(re.split(r"[<]| [A-Z0-9]", name)[0], []).append(row)
    return groups


def table(rows: Mapping[str, Row]) -> str:
    """Markdown: a line for each kernel, from the least to the most over its variants."""
    lines = ["| kernel | variants | registers | stack | spilled | shared memory | matrix instructions |"]
    lines.append("|---|---:|---:|---:|---:|---:|---:|")
    for name, group in sorted(_groups(rows).items()):
        shared = [row["shared"] for row in group if "shared" in row]
        figures = [_span(row[figure] for row in group) for figure in ("registers", "stack", "spilled")]
        figures += [_span(shared) if shared else "", _span(row["matrix"] for row in group)]
        lines.append(f"| {name} | {len(group)} | {' | '.join(figures)} |")
    return "\n".join(lines)


def spilling(evidence: Mapping) -> str:
    """Markdown: a line for each variant that spills."""
    lines = ["| compiled for | kernel | spilled bytes a thread |", "|---|---|---:|"]
    for compiler in ("nvcc", "triton"):
        for key, rows in evidence[compiler].items():
            lines += [f"| {key} | {name} | {row['spilled']} |" for name, row in rows.items() if row["spilled"]]
    return "\n".join(lines) if len(lines) > 2 else "None."


def sanitized(evidence: Mapping) -> str:
    """Markdown: a line for each sanitizer."""
    names = {"asan": "AddressSanitizer and UndefinedBehaviorSanitizer", "tsan": "ThreadSanitizer"}
    lines = ["| sanitizer | clean launches | schedules |", "|---|---:|---:|"]
    for name, run in evidence["sanitizers"].items():
        lines.append(f"| {names[name]} | {run['launches']} | {len(sanitizers.SCHEDULES[name])} |")
    return "\n".join(lines)


def page(evidence: Mapping, text: str) -> str:
    """``text`` with the tables of ``evidence`` between its marks.

    Raises:
        SystemExit: a mark or its end is missing.
    """
    blocks = {
        "compilers": ", ".join(f"{name} {version}" for name, version in evidence["compilers"].items()),
        "spilling": spilling(evidence),
        "sanitizers": sanitized(evidence),
    }
    for compiler in ("nvcc", "triton"):
        blocks[compiler] = "\n\n".join(f"### {key}\n\n{table(rows)}" for key, rows in evidence[compiler].items())
    for name, block in blocks.items():
        mark = rf"(<!-- evidence: {name} -->\n).*?(<!-- end -->)"
        text, count = re.subn(mark, lambda m, block=block: f"{m[1]}{block}\n{m[2]}", text, flags=re.DOTALL)
        if count != 1:
            raise SystemExit(f"{PAGE} should have one mark 'evidence: {name}' with its 'end', it has {count}")
    return text


def as_json(evidence: Mapping) -> str:
    """A line for each kernel, so that a change of one is a line of a diff."""
    text = json.dumps(evidence, indent=1)
    return re.sub(r"\{\s+(\"registers\"[^{}]+?)\s+\}", lambda m: "{" + re.sub(r"\s+", " ", m[1]) + "}", text) + "\n"


def write(evidence: Mapping) -> None:
    """Write docs/kernels.json, and the tables of docs/kernels.md."""
    for path, content in (
        (PAGE, page(evidence, PAGE.read_text())),
        (KEPT, as_json(evidence)),
    ):
        temporary = path.with_suffix(".new")
        temporary.write_text(content)
        temporary.replace(path)


def main() -> int:
    """Compile, and write what came out."""
    reason = build.missing()
    if reason is not None:
        raise SystemExit(f"the kernels cannot be compiled here: {reason}")
    write(collect())
    print(f"wrote {KEPT} and {PAGE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
