"""Any rasters → chips, through a declarative recipe. `docs/ingest.md` explains recipes; `aef.data.ingest.recipe` reads them."""
