"""`esteira quantise`: the same model with int8 weights, if its answers stay as good; a report of before and after in any case."""

from pathlib import Path

import click

from esteira.cli import emit, say, show


@click.command()
@click.option("--bundle", required=True, type=click.Path(file_okay=False), help="Bundle folder; it stays as it is.")
@click.option(
    "--data", required=True, type=click.Path(),
    help="Labelled rows that it did not learn from: CSV, gzip CSV, JSON lines or Parquet.",
)  # fmt: skip
@click.option("--target", default="", metavar="COL", help="Column with the label; by default the contract's.")
@click.option(
    "--out", required=True, type=click.Path(file_okay=False),
    help="Folder for report.json, report.html and, if it is accepted, bundle/.",
)  # fmt: skip
@click.option("--calls", type=click.IntRange(10), default=500, show_default=True, help="Single rows each is timed on.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def quantise(bundle: str, data: str, target: str, out: str, calls: int, as_json: bool) -> None:
    """Round a bundle's large matrix products to int8, and measure accuracy, time and bytes before and after.

    The new bundle is written only where accuracy falls by at most a point, or R2 by at most 0.01.

    \b
    Example:
      esteira quantise --bundle build/b --data held.csv --target churned --out build/small
      esteira serve --bundle build/small/bundle
    """
    import hashlib
    import json

    from esteira import outputs
    from esteira.automl import bundle_files, quantised, quantised_page
    from esteira.bundle import open_bundle
    from esteira.errors import DataError, Refused
    from esteira.rows import read_rows

    folder = Path(out)
    bundle_files.check_place(folder / "bundle")
    bundle_files.check_page(folder / "report.html", Path(bundle))
    opened = open_bundle(Path(bundle), "cpu")
    schema = opened.manifest.get("schema") or {}
    label = target or str(schema.get("target", {}).get("name", ""))
    rows = read_rows(Path(data), {column["name"]: column["kind"] for column in schema.get("columns", [])})
    if rows and label not in rows[0]:
        raise DataError(
            f"every row carries its label, but there is no column {label!r}",
            code="missing_label", where=data, cure=f"name it with --target; there are {', '.join(list(rows[0])[:20])}",
        )  # fmt: skip
    labels = [row.pop(label, None) for row in rows]
    known = {"name": Path(data).name, "content_hash": hashlib.sha256(Path(data).read_bytes()).hexdigest()}
    found = quantised.compare(opened, rows, labels, data=known, calls=calls)
    bundle_id = None
    if found.accepted:
        bundle_id = bundle_files.write(folder / "bundle", found.files, found.manifest)
    report = {**found.report, "bundle_id": bundle_id}
    outputs.write(
        folder,
        {
            "report.json": (json.dumps(report, ensure_ascii=False, allow_nan=False, indent=1) + "\n").encode(),
            "report.html": quantised_page.render(found).encode(),
        },
    )
    said = quantised_page.verdict(report)
    if not found.accepted:
        raise Refused(
            said,
            code="score_fell",
            where=str(folder / "report.html"),
            cure="serve the bundle as it is; nothing was sealed",
        )
    if as_json:
        emit(report)
        return
    ratio = quantised_page.gain(report)
    was, now = report["before"], report["after"]
    show(said)
    show(
        f"one row: {was['one_row_us']['answer']['p50']:,.0f} us before, {now['one_row_us']['answer']['p50']:,.0f} after; "
        f"graph: {was['bytes']:,} bytes before, {now['bytes']:,} after"
    )
    if ratio < 1:
        say(f"{click.style('warning:', fg='yellow')} one row takes {1 / ratio:.2f} times as long as before")
    show(f"bundle {str(bundle_id)[:12]} in {folder / 'bundle'}; {folder / 'report.html'} shows both")
