"""# A result in five minutes

Phantom head CTs stand for patients, so this needs no data: each has a head, a brain and a hematoma of its own. We
plant copies among new images and see what is found.
"""

import os
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np

import replica_detection as rd
from replica_detection.phantom import make_head_ct, make_replica

# ## Three groups of images
#
# The *training* scans are what a generator learnt from. The *unseen* scans come from the same source, but the generator
# never saw them: they tell how alike different patients look. The more there are, the steadier the verdicts. The
# *synthetic* images are to be tested.

quick = "REPLICA_DETECTION_QUICK" in os.environ  # the tests take fewer patients
patients, strangers = (9, 14) if quick else (16, 24)
training = [make_head_ct(seed) for seed in range(patients)]
unseen = [make_head_ct(seed) for seed in range(100, 100 + strangers)]

# Four of the synthetic images show new patients. The others copy a training scan: with noise, mirrored left-right, and
# as its hematoma in another head.

random = np.random.default_rng(0)
synthetic = {f"new_{seed}": make_head_ct(seed) for seed in range(200, 202 if quick else 204)}
synthetic["noisy copy of 2"] = make_replica("noise", training[2], random, training[2])
synthetic["mirrored copy of 5"] = replace(training[5], image=training[5].image[::-1], mask=training[5].mask[::-1])
synthetic["hematoma of 8"] = make_replica("anatomy", training[8], random, training[8])


# ## From arrays to verdicts
#
# Arrays need their spacing in mm (or an affine) and ids. Masks of the region of interest are not required, but a
# copied hematoma in another head is found by nothing else.


def cohort(phantoms, ids):
    """Images and masks under these names; every second voxel of each slice, to be quick."""
    return rd.Cohort.from_arrays(
        [phantom.image[::2, ::2] for phantom in phantoms],
        masks=[phantom.mask[::2, ::2] for phantom in phantoms],
        spacing=(3.6, 3.6, 4.5),
        ids=ids,
    )


index = rd.build_index(
    cohort(training, [f"train_{i:02d}" for i in range(patients)]), "training.rdindex", profile="head-ct"
)
result = rd.detect(
    cohort(synthetic.values(), list(synthetic)),
    index,
    validation=cohort(unseen, [f"unseen_{i:02d}" for i in range(strangers)]),
)
for case in sorted(result.summary, key=lambda case: -case.score):
    levels = " ".join(case.levels_flagged)
    print(f"{case.synthetic_id:20}{case.verdict:12}{case.score:.3f}  {case.nearest_training_id}  {levels}")

# `replica` means: closer to a training scan than unseen scans are, after correction for the number of images. The score
# is 1 for images that look more replica-like than any unseen scan. The last column names the levels that were flagged:
# voxels, features, or the masks.
#
# ## Tables and a report
#
# The tables are CSV files; the report is one page that opens from the disk. `result.to_dataframe()` gives the summary
# to pandas.

result.write("result")
page = result.write_report("result/report")
print(page)

# ## Look at it
#
# All measures combined, for each synthetic image and for each unseen scan. The dashed line is the threshold for a
# single image.

figure, axes = plt.subplots(figsize=(8, 2.8), layout="constrained")
axes.hist(result.run.null.evidence, bins=20, color="0.75", label="unseen scans")
heights = np.linspace(0.6, 4.5, len(result.summary))
for case, evidence, height in zip(result.summary, result.run.evidence, heights, strict=True):
    colour = {"replica": "C3", "suspicious": "C1"}.get(case.verdict, "C0")
    axes.plot(evidence, height, "o", color=colour)
    axes.annotate(case.synthetic_id, (evidence, height), (6, -3), textcoords="offset points", fontsize=8)
axes.axvline(result.run.evidence_threshold, color="k", linestyle="--")
axes.margins(x=0.2)
axes.set(xlabel="combined evidence (larger = more replica-like)", ylabel="unseen scans")
figure.savefig("five_minutes_evidence.png", dpi=100)

# ![Combined evidence: unseen scans as a histogram, synthetic images as points,
# the copies to the right of the threshold](../images/tutorials/five_minutes_evidence.png)
#
# Each copy beside the training scan that was named, at the level of the hematoma. The outline is the mask.

named = {f"train_{i:02d}": phantom for i, phantom in enumerate(training)}
copies = [case for case in result.summary if not case.synthetic_id.startswith("new")]
figure, panels = plt.subplots(2, len(copies), figsize=(8, 5.2), layout="constrained")
for column, case in zip(panels.T, copies, strict=True):
    pair = {case.synthetic_id: synthetic[case.synthetic_id], case.nearest_training_id: named[case.nearest_training_id]}
    for panel, (name, phantom) in zip(column, pair.items(), strict=True):
        level = phantom.mask.sum((0, 1)).argmax()
        panel.imshow(phantom.image[:, :, level].T, cmap="gray", vmin=0, vmax=90, origin="lower")
        panel.contour(phantom.mask[:, :, level].T, [0.5], colors="C1", linewidths=1)
        panel.set_title(name, fontsize=9)
        panel.axis("off")
figure.savefig("five_minutes_pairs.png", dpi=80)

# ![Above the three copies, below the training scan that each one
# was found to resemble](../images/tutorials/five_minutes_pairs.png)
#
# ## What this does not say
#
# `novel` means that no training scan is unusually close under the measures that ran. It does not show that nothing
# about a patient can be learned from an image. Phantoms are cleaner than patients: [Evaluation](../evaluation.md) has
# the figures on real scans, and [Train a generator](../train-a-generator.md) goes on with your own.
