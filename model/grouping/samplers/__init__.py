"""Samplers by name: how a step's weights of the heads follow from the logits; one module for each.

`Grouping` looks them up; the published recipe's `grouping.sampler` names one.
"""
