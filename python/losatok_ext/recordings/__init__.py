"""Finds and describes inputs: files, folders, patterns, manifests and shards, by one rule for every command."""

from losatok_ext.recordings.dataset import DataSet, find_dataset
from losatok_ext.recordings.find import Failure, Inputs, Source, find_inputs
from losatok_ext.recordings.labelled import find_items
from losatok_ext.recordings.manifest import Item, Segment, read_manifest
from losatok_ext.recordings.outputs import place_outputs

__all__ = [
    "DataSet",
    "Failure",
    "Inputs",
    "Item",
    "Segment",
    "Source",
    "find_dataset",
    "find_inputs",
    "find_items",
    "place_outputs",
    "read_manifest",
]
