"""One module for each family of encoders; every module here is found by itself.

A module needs ``RECORDS`` (its `EncoderSpec`, readable without torch) and ``build(record)``, which
returns a `wsi_dino.encoders.backbone.Backbone`. It may have:

- ``convert(state, record)``: renames the tensors of a checkpoint to those of ``build``'s module;
- ``fitted(record, state)``: the record of the network that a checkpoint needs, where a family has variants;
- ``packaged_weights(record)``: path of weights that come with an installed package;
- ``NAME_PREFIX`` and ``make_record(name)``: for names that are not listed, such as ``timm/NAME``;
- ``make_record_near(name, paths)``: the same for records made from files that lie with the weights;
- ``locate(record, weights, weights_dir)``: for weights that may lie under several names; returns a
  `wsi_dino.encoders.weights.WeightsFile`;
- ``find_files(record, weights, weights_dir)`` and ``fetch_files(record, progress)``: all files that the encoder is
  made of, the weights first, as they are on this machine and as the hub gives them, where that is more than one
  file or one name;
- ``load(record, weights, weights_dir)``: for networks that are not one file of tensors beside ``build``'s
  module; returns the backbone with its weights, their SHA-256 and their source.
"""
