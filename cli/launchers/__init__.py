"""Engines that start workers on a run, one file each."""
