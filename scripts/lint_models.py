#!/usr/bin/env python3
"""Checks the model code against transformers' rules for models, with transformers-mlinter.

mlinter knows files by names such as modeling_x.py, and here a configuration and its model stand in one file. So each
file of the backbone and of the architectures is shown to it under both names. Rules that cannot apply: mlinter.toml.
"""

import json
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
RULES = ROOT / "scripts" / "mlinter.toml"
FOLDERS = (ROOT / "src" / "dsf_models" / "backbone", ROOT / "src" / "dsf_models" / "architectures")


def main() -> int:
    """Print what breaks a rule, and return 1 if anything does."""
    off = tomllib.loads(RULES.read_text(encoding="utf-8"))["off"]
    found = findings()
    broken = [text for rule, text in found if rule not in off]
    needless = off.keys() - {rule for rule, _ in found}
    broken += [f"{RULES.relative_to(ROOT)}: {rule} is off for nothing" for rule in sorted(needless)]
    print("\n".join(broken) or f"All checks passed ({', '.join(off)} are off)")
    return int(bool(broken))


def findings() -> list[tuple[str, str]]:
    """Return every finding of mlinter's default rules: the rule, and a line of text with the true file's name."""
    with tempfile.TemporaryDirectory() as folder:
        names = {}
        for path in sorted(path for source in FOLDERS for path in source.glob("[!_]*.py")):
            for kind in ("modeling", "configuration"):
                shown = shutil.copy(path, Path(folder) / f"{kind}_{path.name}")
                names[Path(shown).name] = path.relative_to(ROOT)
        report = Path(folder) / "report.json"
        command = [sys.executable, "-m", "mlinter", "--no-cache", "--no-progress", "--output-json", str(report), folder]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if not report.exists():
            raise SystemExit(f"mlinter failed:\n{done.stderr}")
        found = json.loads(report.read_text(encoding="utf-8"))["findings"]
    texts = [(item["rule"], f"{names[Path(item['path']).name]}:{item['line']}: {item['message']}") for item in found]
    return list(dict.fromkeys(texts))


if __name__ == "__main__":
    sys.exit(main())
