"""corpus_folder.py: damaged folders, odd names, the parts of a corpus, counting."""

import os
from pathlib import Path

import numpy as np
import pytest
import soundfile

from mini_pkd import UserError, corpus, corpus_folder
from mini_pkd.audio_file import read_audio
from mini_pkd.bpe import BPE, word_counts
from mini_pkd.corpus_folder import Utterance, doubts, find_parts, missing_roles, read_part
from mini_pkd.feature_store import FeatureStore


def tone(path, samples=4000, seed=0, rate=16000):
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng([seed, samples])
    soundfile.write(path, (0.1 * rng.standard_normal(samples)).astype(np.float32), rate)


def make_part(folder, speakers=2, chapters=2, utterances=3, suffixes=("flac", "wav", "ogg")):
    """A small part; utterance lengths differ, and so do the formats."""
    count = 0
    for speaker in range(speakers):
        for chapter in range(chapters):
            place, lines = folder / f"{10 + speaker}" / f"{7 + chapter}", []
            for n in range(utterances):
                name = f"{10 + speaker}-{7 + chapter}-{n:04d}"
                tone(place / f"{name}.{suffixes[count % len(suffixes)]}", 300 + 571 * count, seed=count)
                lines.append(f"{name} WORD{count} IT'S {'AGAIN ' * n}".rstrip())
                count += 1
            (place / f"{10 + speaker}-{7 + chapter}.trans.txt").write_text("\n".join(lines) + "\n")
    return folder


def test_reads_a_part_in_order(tmp_path):
    utterances, problems = read_part(make_part(tmp_path / "train"))
    assert problems == [] and len(utterances) == 12
    assert [u.id for u in utterances] == sorted(u.id for u in utterances)
    assert utterances[0].id == "10-7-0000" and utterances[0].text == "WORD0 IT'S"
    assert utterances[-1].speaker == "11" and utterances[-1].text == "WORD11 IT'S AGAIN AGAIN"
    assert {u.audio.suffix for u in utterances} == {".flac", ".wav", ".ogg"}
    assert all(u.audio.exists() and u.audio.stem == u.id for u in utterances)
    assert read_part(str(tmp_path / "train"))[0] == utterances
    counts = word_counts(u.text for u in utterances)
    assert counts["IT'S"] == 12 and counts["AGAIN"] == 4 * (0 + 1 + 2) and counts["WORD7"] == 1


def test_every_damage_is_listed_and_skipped(tmp_path):
    folder = make_part(tmp_path / "train", chapters=1)
    place = folder / "10" / "7"
    transcript = place / "10-7.trans.txt"
    (place / "10-7-0001.wav").unlink()  # transcript without audio
    tone(place / "10-7-0777.wav")  # audio without transcript
    tone(place / "10-7-0002.flac")  # the same utterance in two formats
    tone(place / "10-7-0005.wav")
    lines = ["10-7-0000 TWICE", "10-7-0005", "", "GIBBERISH", "   ", "10-7-0009 NO AUDIO"]
    transcript.write_text(transcript.read_text() + "\n".join(lines) + "\n")
    (folder / "12" / "1").mkdir(parents=True)
    tone(folder / "12" / "1" / "12-1-0000.wav")
    (folder / "12" / "1" / "12-1.trans.txt").write_bytes(b"12-1-0000 \xff\xfe\n")
    (folder / "12" / "12.trans.txt").write_text("12-0 TOO HIGH\n")
    (place / "._10-7.trans.txt").write_bytes(b"\x00\xff")  # what macOS leaves behind
    (folder / "README.TXT").write_text("not a speaker")

    utterances, problems = read_part(folder)
    assert [u.id for u in utterances] == ["10-7-0000", "10-7-0002"] + [f"11-7-{n:04d}" for n in range(3)]
    assert utterances[0].text == "WORD0 IT'S"
    reasons = sorted(f"{p}" for p in problems)
    for words in [
        "no audio file for 10-7-0001",
        "no audio file for 10-7-0009",
        "no transcript line for 10-7-0777",
        "second audio file for 10-7-0002",
        "10-7-0000 stands twice",
        "transcript of 10-7-0005 is empty",
        "malformed line 'GIBBERISH'",
        "not UTF-8",
        "no transcript line for 12-1-0000",
        "outside any <chapter>",
    ]:
        assert sum(words in reason for reason in reasons) == 1, (words, reasons)
    assert len(problems) == 10
    with pytest.raises(UserError, match="--strict"):
        read_part(folder, strict=True)


def test_the_same_id_in_two_chapters(tmp_path):
    folder = make_part(tmp_path / "train", speakers=1, chapters=1, utterances=1)
    tone(folder / "10" / "8" / "10-7-0000.wav")
    (folder / "10" / "8" / "10-8.trans.txt").write_text("10-7-0000 OTHER\n")
    utterances, problems = read_part(folder)
    assert [u.text for u in utterances] == ["WORD0 IT'S"]
    assert len(problems) == 1 and "10-7.trans.txt" in problems[0].reason


def odd_name(folder, name=b"caf\xe9"):
    """A path that is not UTF-8, where the disk knows such names."""
    path = Path(os.fsdecode(os.path.join(os.fsencode(folder), name)))
    try:
        path.mkdir(parents=True)
    except OSError:
        pytest.skip("this disk takes names in UTF-8 only")
    path.rmdir()
    return path


@pytest.mark.parametrize("level", ["audio", "transcript", "chapter", "speaker", "part"])
def test_names_that_are_not_utf8(tmp_path, capsys, level):
    """What can be used is used: the audio has its id in a transcript, which is UTF-8, and so cannot be matched."""
    part = make_part(tmp_path / "train", speakers=2, chapters=1)
    place = part / "10" / "7"
    old = {
        "audio": place / "10-7-0001.wav", "transcript": place / "10-7.trans.txt", "chapter": place,
        "speaker": part / "10", "part": part,
    }[level]  # fmt: skip
    name = {"audio": b"caf\xe9.wav", "transcript": b"caf\xe9.trans.txt"}.get(level, b"caf\xe9")
    new = old.rename(odd_name(old.parent, name))
    part = new if level == "part" else part
    utterances, problems = read_part(part)
    assert len(utterances) == (5 if level == "audio" else 6)
    assert all(read_audio(u.audio).size for u in utterances)
    assert len(problems) == (2 if level == "audio" else 0)
    if level == "audio":
        assert any("caf\\udce9.wav: no transcript line" in str(problem) for problem in problems)
    "\n".join(map(str, problems)).encode()  # into skipped.txt
    store = FeatureStore.build(tmp_path / "store", utterances)
    assert len(store) == len(utterances) and not store.problems
    assert corpus.main([str(part)]) == 0
    out = capsys.readouterr().out
    out.encode()
    assert out.splitlines()[1].split()[1] == str(len(utterances))


def test_bad_audio_in_a_folder_that_is_not_utf8_is_listed(tmp_path, capsys):
    part = make_part(tmp_path / "train", speakers=1, chapters=1)
    (part / "10" / "7").rename(odd_name(part / "10"))
    utterances, _ = read_part(part)
    utterances[1].audio.write_bytes(b"no audio")
    for _ in range(2):  # built, then opened
        (problem,) = FeatureStore.build(tmp_path / "store", utterances).problems
        assert "10-7-0001: " in str(problem) and "caf\\udce9" in str(problem)
        str(problem).encode()
    assert corpus.main([str(part)]) == 0 and "caf\\udce9" in capsys.readouterr().out


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names here")
def test_pipes_and_links_that_lead_nowhere_are_listed(tmp_path):
    part = make_part(tmp_path / "train", speakers=2, chapters=2)
    good, _ = read_part(part)
    for place in (part, part / "10", part / "10" / "7"):
        os.mkfifo(place / "pipe")
        (place / "dangling").symlink_to(tmp_path / "absent")
        (place / "loop").symlink_to(place / "loop")
    place = part / "10" / "7"
    for name, make in {
        "10-7-0000.flac": lambda path: os.mkfifo(path),
        "10-7-0001.wav": lambda path: path.symlink_to(path),
        "10-7-0002.ogg": lambda path: path.symlink_to(tmp_path / "absent"),
    }.items():
        (place / name).unlink()
        make(place / name)
    for name, make in {
        "a.trans.txt": lambda path: os.mkfifo(path),
        "b.trans.txt": lambda path: path.symlink_to(path),
        "c.trans.txt": lambda path: path.symlink_to("/dev/zero"),
    }.items():
        make(place / name)
    (part / "12").symlink_to(part / "11")  # a link that does lead somewhere is followed: its ids stand twice
    utterances, problems = read_part(part)
    assert [u.id for u in utterances] == [u.id for u in good if not u.id.startswith("10-7-")]
    reasons = [str(problem) for problem in problems]
    assert sum("neither a file nor a folder" in reason for reason in reasons) == 9 + 3 + 3
    assert sum("no audio file for 10-7-000" in reason for reason in reasons) == 3
    assert sum("stands twice" in reason for reason in reasons) == 6 and len(reasons) == 24
    with pytest.raises(UserError, match="neither a file nor a folder.*--strict"):
        read_part(part, strict=True)


def test_what_cannot_be_read_is_listed(tmp_path, monkeypatch):
    """A transcript and a folder without permission; root may read everything, hence the stand-ins."""
    part = make_part(tmp_path / "train")
    real_scan, real_read = corpus_folder.scan, Path.read_text

    def scan(folder):
        if str(folder).endswith("/10/8"):
            raise PermissionError(13, "Permission denied")
        return real_scan(folder)

    def read_text(path, *arguments, **options):
        if path.name == "11-7.trans.txt":
            raise PermissionError(13, "Permission denied")
        return real_read(path, *arguments, **options)

    monkeypatch.setattr(corpus_folder, "scan", scan)
    monkeypatch.setattr(Path, "read_text", read_text)
    utterances, problems = read_part(part)
    assert len(utterances) == 6 and len(problems) == 2 + 3  # the audio of that transcript has no text
    assert "10/8: this folder cannot be read (Permission denied)" in str(problems[0])
    assert "11-7.trans.txt: this transcript cannot be read (Permission denied)" in str(problems[1])
    monkeypatch.setattr(corpus_folder, "scan", lambda folder: scan("x/10/8"))
    with pytest.raises(UserError, match="no utterance .*the first of 1 problems is .*cannot be read"):
        read_part(part)
    (tmp_path / "train").rename(tmp_path / "other")
    with pytest.raises(UserError, match="Permission denied"):
        find_parts(tmp_path)


def test_paths_that_cannot_be(tmp_path):
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    for read in (read_part, find_parts):
        with pytest.raises(UserError, match="is not a folder"):
            read(loop)
        for path in (tmp_path / ("x" * 300), tmp_path / "/".join(["y" * 200] * 30)):
            with pytest.raises(UserError, match="does not exist"):
                read(path)


def test_the_marker_of_bpe_is_no_word(tmp_path):
    part = make_part(tmp_path / "train", speakers=1, chapters=1)
    transcript = part / "10" / "7" / "10-7.trans.txt"
    transcript.write_text(transcript.read_text().replace("WORD1", "WO\u2581RD"))
    utterances, problems = read_part(part)
    counts = word_counts(u.text for u in utterances)
    assert not problems and set(counts) == {"WORD0", "WORD2", "IT'S", "AGAIN"}
    BPE.train(counts, 30)


def test_missing_and_empty_folders(tmp_path):
    with pytest.raises(UserError, match="does not exist.*<speaker>/<chapter>"):
        read_part(tmp_path / "nowhere")
    with pytest.raises(UserError, match="no utterance was found.*<speaker>/<chapter>"):
        read_part(tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="is not a folder"):
        read_part(tmp_path / "file")
    with pytest.raises(UserError, match="does not exist"):
        find_parts(tmp_path / "nowhere")
    with pytest.raises(UserError, match="no part for train .* and dev"):
        find_parts(tmp_path)


@pytest.mark.parametrize(
    "names, train, dev, tests",
    [
        (["train", "dev", "test-clean", "test-other"], ["train"], ["dev"], 2),
        (
            ["train-other-500", "train-clean-100", "dev-clean", "dev-other", "test-clean", "test-other", "x"],
            ["train-clean-100", "train-other-500"],
            ["dev-clean", "dev-other"],
            2,
        ),
        (["train-clean-5", "dev-clean-2"], ["train-clean-5"], ["dev-clean-2"], 0),
    ],
)
@pytest.mark.parametrize("nested", [False, True])
def test_find_parts(tmp_path, names, train, dev, tests, nested):
    for name in names:
        (tmp_path / ("LibriSpeech" if nested else ".") / name).mkdir(parents=True)
    parts = find_parts(tmp_path)
    assert list(parts) == ["train", "dev", "test-clean", "test-other"]
    assert [p.name for p in parts["train"]] == train and [p.name for p in parts["dev"]] == dev
    assert len(parts["test-clean"] + parts["test-other"]) == tests
    sentence = missing_roles(parts)
    assert (sentence == "") == (tests == 2)
    if not tests:
        assert "no test-clean and no test-other, so no WER will be reported." in sentence
        one = missing_roles(parts | {"test-clean": ["here"]})
        assert one == "This corpus has no test-other, so nothing will be reported for it."
        with pytest.raises(UserError, match="test-clean"):
            find_parts(tmp_path, required=("test-clean",))


def test_doubts_about_a_copy_of_librispeech(tmp_path):
    """Half of a part, a download that is not over, speakers of training in a test set; elsewhere these may be meant."""
    root = tmp_path / "LibriSpeech"

    def spoken(speakers):
        return [Utterance(f"{speaker}-{i}", speaker, Path("x"), "A") for i, speaker in enumerate(speakers)]

    def parts(train, speakers):
        names = {"train": train, "dev": "dev-clean-2", "test-clean": "test-clean"}
        return {role: {root / name: spoken(speakers[role])} for role, name in names.items()}

    whole = {"train": ["19"] * 1519, "dev": ["84"] * 1089, "test-clean": ["61"] * 2620}
    assert doubts(root, parts("train-clean-5", whole)) == []
    (half,) = doubts(root, parts("train-clean-5", whole | {"dev": ["84"] * 500}))
    assert half.startswith(f"{root / 'dev-clean-2'} holds 500 of the 1089 utterances that this part of LibriSpeech has")
    shared = whole | {"test-clean": [str(i % 26) for i in range(2620)], "train": [str(i % 60) for i in range(1519)]}
    (twice,) = doubts(root, parts("train-clean-5", shared))
    assert twice.startswith("0, 1, 10 and 23 more of test-clean have names of speakers of train; if they are the same")
    assert doubts(root, parts("train", shared | {"dev": ["1"]})) == []
    for name in ("train-clean-100.tar.gz.part", "test-other.tar.gz", "dev-clean-2.tar.gz"):  # the last one was kept
        root.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    other, more = doubts(root, parts("train-clean-5", whole))
    path = tmp_path / "test-other.tar.gz"
    assert other == f"test-other is not used, because its download has not ended ({path}); go on with it."
    assert "train-clean-100 is not used" in more and more in doubts(tmp_path, parts("train-clean-5", whole))


def test_check_command(tmp_path, capsys):
    make_part(tmp_path / "train")
    make_part(tmp_path / "dev", chapters=1)
    (tmp_path / "dev" / "10" / "7" / "10-7-0000.flac").write_bytes(b"")
    assert corpus.main([str(tmp_path)]) == 0
    out = capsys.readouterr().out
    seconds = sum(300 + 571 * n for n in range(12)) / 16000
    train = next(line.split() for line in out.splitlines() if line.startswith("train"))
    assert train == ["train", "12", "2", "36", f"{seconds / 3600:.2f}", "0"]
    assert "10-7-0000.flac: cannot be read" in out and "no test-clean and no test-other" in out
    assert corpus.main([str(tmp_path), "--strict"]) == 1
    assert corpus.main([str(tmp_path / "train")]) == 0
    assert corpus.main([str(tmp_path / "nowhere")]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("corpus: ") and "does not exist" in error
