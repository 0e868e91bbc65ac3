"""Benchmarks: play a system over dialogues, score its answers, print the tables."""
