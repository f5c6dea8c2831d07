"""The tutorial: thirteen notebooks from a waveform to a trained cascade; README.md has the index.

draw.py holds their pictures, exercise.py checks answers, utterance.py and models.py what all of them look at, and
build.py makes the notebooks from their sources.
"""
