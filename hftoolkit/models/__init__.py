"""Pretrained backbones and what changes them: adapters, probes, frozen layers. And the baselines beside them."""
