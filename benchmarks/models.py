"""Pre-trained models that come by pip as folders that transformers loads: where the encoder lies, and the decoder written out.

python benchmarks/models.py            the encoder's folder
python benchmarks/models.py FOLDER     writes the decoder, SmolLM2-135M in float32, into FOLDER
"""

from __future__ import annotations

import argparse
from pathlib import Path

from tasks import decoder, decoder_tokenizer, encoder


def main() -> None:
    """Say or write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path)
    given = parser.parse_args()
    if given.folder is None:
        print(encoder())
        return
    if given.folder.exists():
        raise SystemExit(f"{given.folder} is there already; give another folder.")
    decoder().save_pretrained(given.folder)
    decoder_tokenizer().save_pretrained(given.folder)
    print(given.folder)


if __name__ == "__main__":
    main()
