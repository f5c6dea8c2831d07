"""Who speaks in data_small: every speaker, the engine and voice behind it, and in which parts it is heard.

A speaker is a voice of a synthesiser, or one that is made from it: the mean of two of Kokoro's voices is a third
person, and a vocoder that moves pitch and formants makes a larger or smaller person of anybody.

    python data_small/voices.py        the table
"""

from dataclasses import dataclass

KNOWN = ("train", "dev", "test-clean")
OTHER = ("test-other",)
DEV_OTHER = ("dev-other",)


@dataclass(frozen=True)
class Voice:
    """engine: a key of make_corpus.SPEAK; name: what the engine calls it, "a+b" for the mean of two of Kokoro's.

    tempo     evens out the engines, because seconds of audio are what training pays for
    pitch     factor on the fundamental frequency, by the vocoder
    formants  factor on the formants' frequencies, by the vocoder: above 1 is a smaller head
    """

    engine: str
    name: str
    tempo: float = 1.0
    pitch: float = 1.0
    formants: float = 1.0
    parts: tuple = KNOWN

    @property
    def vocoded(self):
        return (self.pitch, self.formants) != (1.0, 1.0)

    def __str__(self):
        changed = f", pitch x {self.pitch:g}, formants x {self.formants:g}" if self.vocoded else ""
        return f"{self.engine} {self.name}{changed}"


def kokoro(*names, parts=KNOWN):
    return [Voice("kokoro", name, 1.15, parts=parts) for name in names]


def espeak(*names, parts=KNOWN):
    return [Voice("espeak-ng", name, parts=parts) for name in names]


# No voice of test-other or dev-other comes near training: not as half of a mean, not through the vocoder, and not as
# another synthesis of the same person (flite's kal is festival's kal, flite's slt is festival's slt).
GROUPS = {  # id of the first speaker: voices
    # America's and Britain's women and men of Kokoro-82M
    200: kokoro(
        "af_alloy", "af_aoede", "af_bella", "af_heart", "af_jessica", "af_kore", "af_nova", "af_sarah",
        "am_adam", "am_echo", "am_eric", "am_liam", "am_michael", "am_puck",
        "bf_alice", "bf_emma", "bm_daniel", "bm_george",
    ),
    230: kokoro(
        "af_heart+bf_emma", "am_adam+bm_george", "af_bella+am_puck", "af_sarah+am_eric", "am_echo+bm_daniel",
        "af_nova+bf_alice",
    ),
    300: espeak(
        "en-us", "en-us+f2", "en-us+m3", "en-us+klatt2", "en-gb", "en-gb+f4", "en-gb-x-rp+f1", "en-gb-scotland+m7",
        "en-029+m1", "en-us-nyc+Andrea",
    ),
    330: [
        Voice("espeak-ng", "en-us", 1.0, 1.35, 1.12),
        Voice("espeak-ng", "en-gb+f2", 1.0, 0.8, 0.92),
    ],
    400: [
        Voice("flite", "awb", 1.05),
        Voice("flite", "rms", 1.2),
        Voice("flite", "slt"),
        Voice("flite", "awb", 1.05, 1.6, 1.14),
        Voice("flite", "rms", 1.2, 1.8, 1.18),
        Voice("flite", "slt", 1.0, 0.62, 0.86),
    ],
    420: [
        Voice("festival", "ked_diphone", 1.1),
        Voice("festival", "ked_diphone", 1.1, 1.5, 1.1),
        Voice("festival", "cmu_us_slt_arctic_hts"),
    ],
    440: [
        Voice("pico", "en-US"),
        Voice("pico", "en-US", 1.0, 0.65, 0.88),
    ],
    # heard nowhere else
    500: kokoro("af_river", "af_sky", "am_fenrir", "am_onyx", "bf_isabella", "bm_lewis", parts=OTHER),
    520: espeak("en-gb-x-gbclan+m4", "en-us+f5", parts=OTHER),
    530: [
        Voice("festival", "kal_diphone", parts=OTHER),
        Voice("pico", "en-GB", 1.1, parts=OTHER),
    ],
    600: kokoro("bf_lily", "bm_fable", parts=DEV_OTHER),
    620: espeak("en-gb-x-gbcwmd+m2", "en-us+Annie", parts=DEV_OTHER),
}  # fmt: skip

SPEAKERS = {first + i: voice for first, voices in GROUPS.items() for i, voice in enumerate(voices)}
VOICES = {"numbers": SPEAKERS, "sentences": SPEAKERS}  # corpus: {speaker: voice}


def speakers(corpus, part):
    """Ids of the speakers that are heard in a part."""
    return [speaker for speaker, voice in VOICES[corpus].items() if part in voice.parts]


if __name__ == "__main__":
    for corpus, voices in VOICES.items():
        for speaker, voice in voices.items():
            print(f"{corpus} | {speaker} | {voice} | {' '.join(voice.parts)}")
