"""Geolocated text: corpora → text points → chips, and the frozen language tower with its cache of vectors.

Wikipedia (`wikipedia`, `wikitext`), Wikidata (`wikidata`) and GBIF (`gbif`, `darwin_core`) are read from local files,
written to one Parquet file of text points (`points`) and put into the chips that hold them (`attach`). `tower` encodes
texts, `cache` keeps the vectors.
"""
