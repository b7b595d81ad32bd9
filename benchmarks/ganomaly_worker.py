"""Trains anomalib's GANomaly on FOLDER/benign and scores FOLDER/judged; runs in anomalib's own environment.

python ganomaly_worker.py FOLDER PIXELS EPOCHS: writes FOLDER/scores.npy, raw scores in the order of names.
"""
