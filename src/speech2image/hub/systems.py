"""Which published system does a set of tensor names belong to?

A wrong checkpoint is the commonest mistake of `import`; the message then says what the file looks
like.  Only names are looked at.  Reading files is `weights.py`, converting is `convert/`.
"""

from __future__ import annotations

from collections.abc import Collection

_MARKS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("an AttnGAN generator", ("ca_net.fc.weight", "h_net2.att.conv_context.weight")),
    ("a StackGAN-v2 (or S2IGAN) generator netG", ("ca_net.fc.weight", "h_net1.fc.0.weight")),
    ("a StackGAN-v2 (or S2IGAN) discriminator netD", ("img_code_s16.0.weight", "uncond_logits.0.weight")),
    ("the speech encoder of Li et al.", ("Conv.0.weight", "RNN.weight_ih_l0")),
    ("the S2IGAN speech encoder (best_audio_model.pth)", ("Conv1.weight", "rnn.weight_ih_l0")),
    ("an S2IGAN image model (best_image_model.pth)", ("Conv2d_1a_3x3.conv.weight", "L1.weight")),
    ("the Inception network of FID, IS and KID", ("Conv2d_1a_3x3.conv.weight", "fc.weight")),
    ("a linear head (S2IGAN best_class_model.pth)", ("L1.weight", "L1.bias")),
    ("an S2IGAN relation classifier netMD", ("fc.0.weight", "fc.3.weight")),
    ("a DAMSM text encoder (AttnGAN)", ("encoder.weight", "rnn.weight_ih_l0")),
    ("a VQGAN", ("encoder.conv_in.weight", "quantize.embedding.weight")),
    ("a VQ-Diffusion transformer", ("transformer.log_at", "transformer.transformer.to_logits.0.weight")),
    ("a SpeechCLIP checkpoint", ("audio_encoder.weightedsum_layer.weights",)),
)


def recognise(names: Collection[str]) -> str | None:
    """Return what a state with these tensor names looks like, or None.

    >>> recognise(["Conv.0.weight", "RNN.weight_ih_l0"])
    'the speech encoder of Li et al.'
    """
    known = {name.removeprefix("module.") for name in names}
    for system, marks in _MARKS:
        if known.issuperset(marks):
            return system
    return None
