"""One module for each family of encoders; every module here is found by itself.

A module needs ``RECORDS`` (its `EncoderSpec`, readable without torch) and ``build(record)``, which
returns a `wsi_dino.encoders.backbone.Backbone`. It may have:

- ``convert(state, record)``: renames the tensors of a checkpoint to those of ``build``'s module;
- ``packaged_weights(record)``: path of weights that come with an installed package;
- ``NAME_PREFIX`` and ``make_record(name)``: for names that are not listed, such as ``timm/NAME``.
"""
