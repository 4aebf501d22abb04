"""The report of a precision measurement: one table, and charts of error, speed and size."""

from __future__ import annotations

import math

from losatok_ext.evaluation.metrics.spectra import MEL_LOSS
from losatok_ext.evaluation.reporting.numbers import fixed
from losatok_ext.evaluation.reporting.report import Bar, BarChart, Headline, Report, Table
from losatok_ext.evaluation.tasks.precision import PrecisionResult

EXPLANATION = (
    "Errors are against float32 of the same model: of tokens as root mean square, relative; of waveforms as signal to "
    "noise, each encoded and decoded in its own precision, and for the decoder alone from float32's tokens. Times are "
    "the best of rounds in turn, with float32's time over them; peak memory is beyond the weights"
)


def precision_report(result: PrecisionResult) -> Report:
    """The report of what :func:`~losatok_ext.evaluation.tasks.precision.evaluate_precision` measured."""
    facts = {
        "model": result.model.removeprefix("Model "),
        "recordings": str(result.recordings),
        "audio": f"{result.seconds:.1f} s",
        "machine": result.machine,
        "date": result.date,
    }
    values = {"definitions": {"mel_loss": MEL_LOSS}, **result.to_dict()}
    report = Report("precision", "Precisions of a model", facts, values, failures=result.failures)
    report.headlines = [
        Headline(f"{row.dtype}, token error", _percent(row.token_error), f"waveform SNR {_decibels(row.snr)}")
        for row in result.rows
    ]
    report.tables = [precision_table(result)]
    for title, unit, figure, scale in (
        ("Token error", "%", "token_error", 100.0),
        ("Encoding 10 s", "ms", "encode_seconds", 1e3),
        ("Decoding 10 s", "ms", "decode_seconds", 1e3),
        ("Weights", "MiB", "bytes", 2.0**-20),
    ):
        bars = [Bar(row.dtype, scale * getattr(row, figure)) for row in result.rows]
        report.charts.append(BarChart(title, bars, f"{unit}; less is better"))
    report.notes = [f"{EXPLANATION}.", f"Mel loss: {MEL_LOSS}."]
    return report


def precision_table(result: PrecisionResult) -> Table:
    """One row per precision; the note says what was measured, where and when."""
    heads = ["dtype", "token error", "worst clip", "cosine", "waveform SNR", "of the decoder", "mel loss"]
    heads += ["encode 10 s", "decode 10 s", "weights", "peak memory"]
    cells = [
        [
            row.dtype,
            _percent(row.token_error),
            _percent(row.worst_token_error),
            fixed(row.cosine, 5),
            _decibels(row.snr),
            _decibels(row.decoder_snr),
            fixed(row.mel_loss),
            _speed(row.encode_seconds, row.encode_speed),
            _speed(row.decode_seconds, row.decode_speed),
            f"{row.bytes / 2**20:,.1f} MiB",
            "not known" if row.peak_bytes is None else f"{row.peak_bytes / 2**20:,.0f} MiB",
        ]
        for row in result.rows
    ]
    note = f"{result.model}; {result.recordings} recordings, {result.seconds:.1f} s. {result.machine}, {result.date}."
    return Table("What each precision costs", heads, cells, note)


def _percent(value: float) -> str:
    return "0" if value == 0 else f"{100 * value:.2f} %"


def _decibels(value: float) -> str:
    return "exact" if math.isinf(value) else f"{value:.1f} dB"


def _speed(seconds: float, ratio: float) -> str:
    return f"{1e3 * seconds:.{0 if seconds >= 0.1 else 1}f} ms ({ratio:.2f}x)"
