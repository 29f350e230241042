"""What an evaluation protocol is, and the table of them.

Here: every choice that decides whether two numbers may stand in one column, for the published
procedures (as released, and corrected) and for ours.  No arithmetic is here; `protocol.py` finds a
protocol by name and refuses numbers without one.  Sources of the published ones: S2IGAN
`inception_score.py`, `mAP_evaluate.py`, `Recall_evaluate.py`; Speak the Art `fid_score.py`,
`inception_score.py`, `Recall_evaluate.py`; VQ-Diffusion's paper.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

CORRECTED_SUFFIX = "-corrected"


@dataclass(frozen=True, slots=True)
class Protocol:
    """Everything that must be equal before two numbers may stand in one column.

    Attributes:
        name: what `protocol=` takes.
        title: one line for tables.
        split: split that is generated and compared.
        real_set: which real images are the other side, in words.
        crop: how real images are cropped before anything else, in words.
        resize: how both sides reach the feature network, in words.
        network: feature network of FID, KID and neighbours: `probe`, or a key of
            `networks.NETWORKS`.
        metrics: families of metrics it defines.
        legacy: the released procedure with its defects.
        prepare: how real images reach a square: `crop`, shorter side to the generated size and the
            centre; `squash256`, both sides to 256, aspect ignored; `short256_crop`, shorter side to
            256 and the centre.
        box_crop: cut CUB's bounding box (0.75) first; other corpora have no boxes.
        real_images: `split`, each image of the split once; `all`, each image of every split;
            `per_caption`, the real image of every generated file, repeated.
        real_resize: PIL filter that resizes real images (all of them antialias).
        drop_last: batch size of the released generation loop, in images of the split: captions of an incomplete
            last batch of images were never painted; 0: every image is scored.
        retrieval_drop_last: batch size of the released retrieval script, which leaves an incomplete last batch of
            queries, and one of generated files, out; 0: all of them.
        equal_counts: score FID, KID and neighbours on equally many of both sides (drawn by seed).
        num_generated: generated images asked for; None: one pass over the split.
        num_seeds: seeds of generation the protocol asks for.
        samples_per_utterance: images generated for each utterance.
        ema: generated with the averaged generator.
        noise: how generation noise is drawn.
        metric_seed: seed of shuffles, subsets and resampling.
        isc_network: network of the inception score; empty: `network`.
        isc_splits: splits of the inception score.
        isc_shuffle: images are shuffled by seed before they are split.
        isc_drop_rest: splits of N // S images, the remainder dropped; else every image is used.
        isc_batch: images beyond a multiple of it are left out of the inception score; 0: none.
        kid_subsets: subsets of KID.
        kid_subset_size: images a subset where each side has twice as many, else half a side.
        fid_interval: give FID an interval, for which all features are kept; False: moments only.
        prc_k: neighbour that sets the radius of precision, recall and their F score.
        prdc_k: neighbour that sets the radius of density and coverage.
        attributes: attributes whose mean is the headline accuracy; empty: all the probe knows.
        retrieval_network: network of image retrieval; empty: `network`.
        retrieval_input: `unit` gives it pixels in [0, 1], `normalised` those it was trained on.
        ks: depths of recall.
        comparable: values may be set beside published ones.
        note: what a reader of the table must know; defects of a released procedure are named here.
    """

    name: str
    title: str
    split: str
    real_set: str
    crop: str
    resize: str
    network: str
    metrics: tuple[str, ...]
    legacy: bool = False
    prepare: Literal["crop", "squash256", "short256_crop"] = "crop"
    box_crop: bool = True
    real_images: Literal["split", "all", "per_caption"] = "split"
    real_resize: Literal["bilinear", "bicubic", "lanczos"] = "bilinear"
    drop_last: int = 0
    retrieval_drop_last: int = 0
    equal_counts: bool = False
    num_generated: int | None = None
    num_seeds: int = 1
    samples_per_utterance: int = 1
    ema: bool = True
    noise: str = "standard normal, not truncated, a function of (seed, utterance)"
    metric_seed: int = 2020
    isc_network: str = ""
    isc_splits: int = 10
    isc_shuffle: bool = True
    isc_drop_rest: bool = False
    isc_batch: int = 0
    kid_subsets: int = 100
    kid_subset_size: int = 1000
    fid_interval: bool = True
    prc_k: int = 3
    prdc_k: int = 5
    attributes: tuple[str, ...] = ()
    retrieval_network: str = ""
    retrieval_input: Literal["unit", "normalised"] = "normalised"
    ks: tuple[int, ...] = (1, 5, 10, 50)
    comparable: bool = False
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the protocol as plain data for `metrics.json`."""
        return dataclasses.asdict(self)


_IMAGE = (
    "fid", "inception_score", "kid", "precision", "recall_prdc", "f_score", "density", "coverage",
    "fid_bound", "kid_bound", "copies",
)  # fmt: skip
_RETRIEVAL = ("recall", "map", "class_accuracy", "ap", "r_precision", "clip_score", "classifier_accuracy")
_PROBE = ("attribute_accuracy", "shuffled_speech", "probe_accuracy")
_OWN_NETWORK = (
    "FID, IS and KID use a small network trained on this corpus: compare runs of this corpus with"
    " each other, never with published values."
)
_UNPUBLISHED = (
    "How the paper cropped and resized real images was never released: this preparation is ours, so"
    " values are an orientation beside its table."
)
_KNOWS_TEST = "test classes or images chose the published checkpoints"

_OURS = (
    Protocol(
        name="spoken_birds",
        title="Spoken birds, unseen species",
        split="test",
        real_set="all real images of the test species, once each",
        crop="bounding box 0.75, as in training",
        resize="antialiased bilinear to the probe's size, centre crop",
        network="probe",
        metrics=_IMAGE + _RETRIEVAL + _PROBE,
        attributes=("body", "wing", "crown", "belly"),
        ks=(1, 5, 10),
        note="An attribute counts where the utterance names it. " + _OWN_NETWORK,
    ),
    Protocol(
        name="spoken_digits",
        title="Spoken digits, unseen recordings",
        split="test",
        real_set="all real test digits, once each",
        crop="none",
        resize="antialiased bilinear to the probe's size",
        network="probe",
        metrics=_IMAGE + _RETRIEVAL + _PROBE,
        box_crop=False,
        attributes=("digit",),
        ks=(1, 5, 10),
        note=_OWN_NETWORK,
    ),
    Protocol(
        name="offline",
        title="Own feature network (any corpus)",
        split="test",
        real_set="all real images of the split, once each",
        crop="as prepared (CUB: bounding box 0.75)",
        resize="antialiased bilinear to the probe's size, centre crop",
        network="probe",
        metrics=_IMAGE + _RETRIEVAL + _PROBE,
        ks=(1, 5, 10),
        note=_OWN_NETWORK,
    ),
    Protocol(
        name="clean",
        title="Inception, test images only, stated preparation, equal counts",
        split="test",
        real_set="all real images of the test split, once each; no training image",
        crop="CUB: bounding box 0.75; other corpora: full frame",
        resize="real: shorter side to the generated size (antialiased bilinear), centre crop;"
        " both: TF1 bilinear to 299 inside the network",
        network="inception-v3-compat",
        metrics=_IMAGE + _RETRIEVAL,
        equal_counts=True,
        num_seeds=3,
        retrieval_network="torchvision-inception",
        note="PNG files, every item of the split, equally many real and generated images in FID, KID"
        " and neighbours. The published papers do not state how they prepared real images; beside"
        " their tables these values are an orientation, not the same protocol.",
    ),
    Protocol(
        name="vqd_30k",
        title="VQ-Diffusion and DF-GAN family: 30,000 generated images",
        split="test",
        real_set="all real images of the test split, once each",
        crop="none: full frame",
        resize="real: shorter side to 256 (antialiased bilinear), centre crop; both: bilinear"
        " half-pixel to 299 on [0, 1] inside the network",
        network="pytorch-fid",
        metrics=_IMAGE + _RETRIEVAL,
        prepare="short256_crop",
        box_crop=False,
        num_generated=30_000,
        noise="the sampler's own; VQ-Diffusion truncates each step (top 0.86)",
        retrieval_network="torchvision-inception",
        comparable=True,
        note="30,000 images for captions of the test split, captions repeated where there are fewer;"
        " FID of unequal counts, biased by the smaller real set. " + _UNPUBLISHED,
    ),
)

_S2IGAN_FLICKR8K = Protocol(
    name="s2igan_flickr8k",
    title="S2IGAN, Flickr8k, as released",
    split="test",
    real_set="real images of the test split, once each",
    crop="none: full frame",
    resize="real: shorter side to 256 (antialiased bilinear), centre crop; both: bilinear half-pixel"
    " to 299 on [0, 1] inside the network",
    network="pytorch-fid",
    metrics=_IMAGE + _RETRIEVAL,
    legacy=True,
    prepare="short256_crop",
    box_crop=False,
    drop_last=7,
    retrieval_drop_last=7,
    noise="standard normal, seed 100, one draw an image shared by its captions",
    isc_network="torchvision-inception",
    isc_shuffle=False,
    isc_drop_rest=True,
    retrieval_network="torchvision-inception",
    retrieval_input="unit",
    comparable=True,
    note="Defects kept: batches of 7 with the last one dropped; inception score on 10 contiguous"
    " splits in file order, without shuffling and without the remainder; retrieval features of"
    f" unnormalised [0, 1] pixels; {_KNOWS_TEST}. " + _UNPUBLISHED,
)
_S2IGAN_CUB = dataclasses.replace(
    _S2IGAN_FLICKR8K,
    name="s2igan_cub",
    title="S2IGAN, CUB, as released",
    crop="bounding box 0.75",
    box_crop=True,
    isc_network="stackgan-birds",
    isc_shuffle=True,
    isc_drop_rest=False,
    isc_batch=64,
    note="Defects kept: batches of 7 with the last one dropped; inception score by a network that was"
    " fine-tuned on the test classes, the last incomplete batch of 64 dropped; mAP features of"
    f" unnormalised [0, 1] pixels; {_KNOWS_TEST}. " + _UNPUBLISHED,
)
_STA_CUB = dataclasses.replace(
    _S2IGAN_FLICKR8K,
    name="sta_cub",
    title="Speak the Art, CUB, as released",
    real_set="all real images of the corpus, training images too, once each",
    crop="none",
    resize="real and generated: squashed to 256 x 256 (PIL bilinear, aspect ignored); both: bilinear"
    " half-pixel to 299 on [0, 1] inside the network",
    prepare="squash256",
    real_images="all",
    drop_last=0,
    noise="100 ancestral steps, guidance 1; truncation not stated",
    note="Defects kept: the real set holds the training images; the aspect ratio is squashed though"
    " training crops squares; inception score by ImageNet's Inception on 10 contiguous splits in file"
    " order, so that captions of one image share a split; retrieval in batches of 7 with the last one"
    f" dropped, on unnormalised pixels; {_KNOWS_TEST}. A second released script pairs each generated"
    " file with its own real image (repeated for each caption); which of the two made the table is not"
    " stated. Mark such values 'STA protocol' and never mix them with others.",
)
_STA_FLICKR8K = dataclasses.replace(
    _STA_CUB, name="sta_flickr8k", title="Speak the Art, Flickr8k, as released"
)


def _corrected(protocol: Protocol, crop: str, box_crop: bool) -> Protocol:
    return dataclasses.replace(
        protocol,
        name=protocol.name + CORRECTED_SUFFIX,
        title=protocol.title.replace("as released", "corrected"),
        real_set="all real images of the test split, once each; no training image",
        crop=crop,
        resize=_S2IGAN_FLICKR8K.resize,
        legacy=False,
        prepare="short256_crop",
        box_crop=box_crop,
        real_images="split",
        drop_last=0,
        retrieval_drop_last=0,
        num_seeds=3,
        isc_network="torchvision-inception",
        isc_shuffle=True,
        isc_drop_rest=False,
        isc_batch=0,
        retrieval_input="normalised",
        comparable=False,
        note="The released procedure without its defects: test images only, every image evaluated,"
        " the aspect ratio kept, the inception score by ImageNet's Inception on images shuffled by"
        " seed, retrieval on normalised pixels, three seeds. Not comparable with the published table.",
    )


PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol for protocol in (*_OURS, _S2IGAN_CUB, _S2IGAN_FLICKR8K, _STA_CUB, _STA_FLICKR8K)
}
"""Protocols by name; those of a release keep its defects."""

CORRECTED: dict[str, Protocol] = {
    name: _corrected(PROTOCOLS[name], "bounding box 0.75" if boxed else "none: full frame", boxed)
    for name, boxed in (
        ("s2igan_cub", True),
        ("s2igan_flickr8k", False),
        ("sta_cub", True),
        ("sta_flickr8k", False),
    )
}
"""The corrected variant of each released protocol, by the name of the released one."""
