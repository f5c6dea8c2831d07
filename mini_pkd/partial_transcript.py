"""What is decoded of a test set so far: hours of beam search that a stop must not cost.

A file of JSON beside the transcript that it will become.  It counts only for the same weights and the same search; what
is damaged or of another search is no error, because decoding again gives it back.
"""

import json
import time
import zlib

from . import checkpoint


def weights_checksum(model):
    """CRC-32 over all parameters of a Module."""
    total = 0
    for p in model.named_parameters().values():
        total = zlib.crc32(p.data, total)
    return total


class PartialTranscript:
    """`texts`: {utterance: text} decoded so far; for `with`, which saves it however it is left.

    path      of its file
    about     what the texts depend on, JSON-able: those of another search are forgotten
    minutes   between two saves
    """

    def __init__(self, path, about, minutes):
        self.path, self.about, self.minutes = path, about, minutes
        self.saved_at = time.monotonic()
        self.texts = self._read()

    def _read(self):
        try:
            content = json.loads(self.path.read_bytes().decode("utf-8"))
            about, texts = content["about"], content["texts"]
        except (OSError, ValueError, LookupError, TypeError, RecursionError):
            return {}
        sound = about == self.about and isinstance(texts, dict) and all(isinstance(t, str) for t in texts.values())
        return texts if sound else {}

    def add(self, texts):
        """More {utterance: text}; saved now and then."""
        self.texts |= texts
        if time.monotonic() - self.saved_at > 60 * self.minutes:
            self.save()

    def save(self):
        self.saved_at = time.monotonic()
        try:
            checkpoint.write_text_atomic(self.path, json.dumps({"about": self.about, "texts": self.texts}) + "\n")
        except checkpoint.DiskFull:  # decoding goes on without
            pass

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.save()
