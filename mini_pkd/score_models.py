"""A trained model's error rates: its test sets decoded, piece by piece so that a stopped run goes on, and scored."""

import time

import numpy as np
from tqdm import tqdm

from . import wer
from .fast_beam import beam_search
from .partial_transcript import PartialTranscript, weights_checksum
from .run_folder import about_model
from .stop_signal import raise_if
from .transcript_file import write_transcript


def score_model(cascade, model, network, training, corpus, stop):
    """Decode the test sets and write result.json, which ends the work on a model."""
    folder, settings, name = cascade.folder, cascade.settings, model.name
    folder.result_file(name).unlink(missing_ok=True)  # of an earlier beam; its texts are about to be replaced
    result = {
        **about_model(model), "params": network.num_parameters(), **training, "beam": settings.beam,
        "wer": {}, "ser": {}, "wer_ci95": {}, "ser_ci95": {}, "edits": {},
    }  # fmt: skip
    start = time.monotonic()
    about = {key: getattr(settings, key) for key in ("beam", "max_symbols")}
    about["weights"] = weights_checksum(network)
    for test_set, store in corpus.tests.items():
        partial = PartialTranscript(folder.partial_file(name, test_set), about, settings.checkpoint_minutes)
        hypotheses = decode(cascade, network, store, corpus.bpe, f"{folder.called(name)} {test_set}", stop, partial)
        write_transcript(folder.text_file(name, test_set), hypotheses)
        score = wer.score(dict(zip(store.ids, store.texts, strict=True)), hypotheses)
        result["wer"][test_set], result["ser"][test_set] = score.wer, score.ser
        for metric in ("wer", "ser"):
            result[f"{metric}_ci95"][test_set] = list(wer.bootstrap_interval(score, metric))
        result["edits"][test_set] = score.edits.sum(axis=0).tolist()
    result["decoding_seconds"] = round(time.monotonic() - start, 1)
    rates = "   ".join(f"{s} WER {100 * result['wer'][s]:.2f} %" for s in result["wer"])
    cascade.say(f"{folder.called(name)}: dev WER {100 * result['best_dev_wer']:.2f} %   {rates}")
    folder.write_result(name, result)
    for path in (*folder.state_files(name), *(folder.partial_file(name, test_set) for test_set in corpus.tests)):
        path.unlink(missing_ok=True)


def decode(cascade, network, store, bpe, label, stop, partial):
    """Beam search over a test set -> {utterance: text}.  Its references are not used here."""
    settings = cascade.settings
    order = [i for i in np.argsort(store.lengths, kind="stable") if store.ids[i] not in partial.texts]
    shown = dict(disable=not cascade.progress, leave=False, position=cascade.slot)
    with tqdm(total=len(order), desc=label, unit="utt", **shown) as bar, partial:
        for start in range(0, len(order), 32):
            raise_if(stop)
            indices = order[start : start + 32]
            features = np.concatenate([store[i] for i in indices])
            enc, lengths = network.encode(features, store.lengths[indices])
            found = beam_search(network, enc, lengths, settings.beam, settings.max_symbols, 1, stop)
            texts = [bpe.decode(best[0].labels) for best in found]
            partial.add(dict(zip([store.ids[i] for i in indices], texts, strict=True)))
            bar.update(len(indices))
    return {i: partial.texts[i] for i in store.ids}
