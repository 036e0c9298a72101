"""Material Design icons: drawings with more than a hundred binary labels, without network.

Called by `dmtg shards icons`; the drawings are in `material_design_icons.json.xz`.
"""
