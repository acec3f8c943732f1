"""The fleet: one package a role (ingest, consume, detect, write), each a thin shell plus pure modules.

The classes are plain: they import no Ray, connect in run(), and are tested
without a cluster. rayapp.runtime turns them into Ray actors.
"""
