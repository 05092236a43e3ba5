"""Pretrained backbones and what changes them: adapters, probes, frozen layers."""
