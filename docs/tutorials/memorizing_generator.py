"""# A generator that memorized

A real generator this time: a 3D latent diffusion model that was trained on 24 MR crops of hippocampi for 1,139
epochs, far beyond the point where it began to repeat them. We audit 64 of its samples.

The crops come from the [Medical Segmentation Decathlon](http://medicaldecathlon.com) (Task 04, hippocampus). The
crops, the samples and the pictures on this page are licensed under [CC BY-SA
4.0](https://creativecommons.org/licenses/by-sa/4.0/).
"""

import os
from pathlib import Path

import matplotlib.pyplot as plt
import nibabel as nib
import numpy as np

import replica_detection as rd

# ## The data
#
# The folder `generated` of the test data holds `training_24` (what the model saw), `memorizing` (64 samples) and
# `unseen` (51 crops of other people, one side of each). All have 40 x 56 x 40 voxels and values from 0 to 255.

data = Path(os.environ["REPLICA_DETECTION_TEST_DATA"]) / "generated"
quick = "REPLICA_DETECTION_QUICK" in os.environ  # the tests leave out the alignment
index = rd.build_index(data / "training_24", "training.rdindex")
result = rd.detect(data / "memorizing", index, validation=data / "unseen", align=not quick)

# ## How many samples repeat a training crop?

verdicts = [case.verdict for case in result.summary]
print({verdict: verdicts.count(verdict) for verdict in ("replica", "suspicious", "novel")})
named = {case.nearest_training_id for case in result.summary if case.verdict == "replica"}
print(f"{len(named)} of 24 training crops are repeated")

# The unseen crops tell what chance looks like. They are compared with the training crops in the same way, with the same
# alignment.

figure, axes = plt.subplots(figsize=(8, 3), layout="constrained")
both = (*result.run.null.evidence, *result.run.evidence)
bins = np.linspace(min(both), max(both), 40)
axes.hist(result.run.null.evidence, bins, color="0.6", label=f"{result.run.null.size} unseen crops")
axes.hist(result.run.evidence, bins, color="C3", alpha=0.7, label=f"{len(verdicts)} samples")
axes.axvline(result.run.evidence_threshold, color="k", linestyle="--", label="p = 0.05")
axes.set(xlabel="combined evidence (larger = more replica-like)", ylabel="images")
axes.legend(frameon=False)
figure.savefig("memorizing_evidence.png", dpi=100)

# ![Two histograms: unseen crops to the left, most samples
# to the right of the threshold](../images/tutorials/memorizing_evidence.png)
#
# ## Look at the pairs
#
# The four samples with the highest score. Below each stands the training crop that was named, and, for comparison, the
# unseen crop that correlates most with the sample.


def crop(folder, case):
    """The voxels of a crop."""
    return np.asarray(nib.load(data / folder / f"{case}.nii.gz").dataobj, np.float32)


others = [path.name.removesuffix(".nii.gz") for path in sorted((data / "unseen").glob("*.nii.gz"))]
figure, panels = plt.subplots(3, 4, figsize=(8, 4.5), layout="constrained")
for column, case in zip(panels.T, sorted(result.summary, key=lambda case: -case.score), strict=False):
    sample = crop("memorizing", case.synthetic_id)
    stranger = max(others, key=lambda other: np.corrcoef(sample.ravel(), crop("unseen", other).ravel())[0, 1])
    images = (sample, crop("training_24", case.nearest_training_id), crop("unseen", stranger))
    for panel, image in zip(column, images, strict=True):
        panel.imshow(image[20].T, cmap="gray", vmin=0, vmax=255, origin="lower")
        panel.set(xticks=[], yticks=[])
for panel, title in zip(panels[:, 0], ("sample", "training crop", "unseen crop"), strict=True):
    panel.set_ylabel(title)
figure.savefig("memorizing_pairs.png", dpi=80)

# ![Four columns: the sample above, the training crop that it repeats in the middle,
# the most similar unseen crop below](../images/tutorials/memorizing_pairs.png)
#
# ## Which measure sees it?
#
# Each measure alone, at p = 0.05:

for measure in result.run.measures:
    rows = [match for match in result.matches if match.measure == measure.name]
    print(f"{measure.name:20}{sum(row.p_value <= 0.05 for row in rows):3} of {len(rows)}")

# ## The set as a whole

kept = rd.filter_replicas(result, keep_duplicates=True)
print(f"{len(kept.kept_ids)} of {len(verdicts)} samples stay")

# What stays is not proved to be unlike the training crops, and filtering changes nothing about the generator: it can
# make the same images again. [Answer for data protection](../data-protection.md) says how to report such a finding.
