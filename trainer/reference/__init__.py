"""The reference of the configuration: docs/configuration.md, `dmtg keys` and the JSON Schema.

Written from the keys of `trainer.config`, the recipes and the encoders; called by `dmtg keys` and
`dmtg schema`.
"""
