"""# Duplicates and a clean split

A cohort was collected over years. Some patients came twice, some files were exported twice, one of them mirrored. If
a scan is in the training set and its duplicate in the test set, the test result is too good. We look for duplicates
and make a split that shares none.
"""

import csv
import os
import random
from pathlib import Path

import matplotlib.pyplot as plt

import replica_detection as rd
from replica_detection.phantom import make_head_ct

# ## A cohort with duplicates
#
# Phantom head CTs again, every second voxel of each slice. Nobody wrote down that three files show patients
# who are there already.

quick = "REPLICA_DETECTION_QUICK" in os.environ  # the tests take fewer patients
images = {f"scan_{seed:02d}": make_head_ct(seed).image[::2, ::2] for seed in range(14 if quick else 24)}
images["export_a"] = images["scan_03"]
images["export_b"] = images["scan_05"][::-1]
images["follow_up"] = make_head_ct(8, visit=1).image[::2, ::2]
cohort = rd.Cohort.from_arrays(list(images.values()), spacing=(3.6, 3.6, 4.5), ids=list(images))

# ## Find them
#
# Each scan is compared with all others, also mirrored, rotated, shifted and scaled. The cohort is its own yardstick:
# most scans are taken to have no duplicate.

found = rd.find_duplicates(cohort)
found.write("duplicates")
for pair in found.pairs:
    print(f"{pair.verdict:16}{pair.first_id:10}{pair.second_id:10}{pair.score:.3f}")

# `identical` are the same voxels, also where an export mirrored them. `near-duplicate` holds after correction for the
# number of scans. `suspicious` does not: about 5 in 100
# scans are called so by chance, so look at the pictures in `duplicates/pairs` before you believe one.
#
# The follow-up scan of patient 8 is not among them. The third column below shows why: the head lies otherwise, and the
# voxels differ as much as those of two strangers.

figure, panels = plt.subplots(2, 3, figsize=(8, 5.2), layout="constrained")
shown = [("scan_03", "export_a"), ("scan_05", "export_b"), ("scan_08", "follow_up")]
for column, names in zip(panels.T, shown, strict=True):
    for panel, name in zip(column, names, strict=True):
        panel.imshow(images[name][:, :, 18].T, cmap="gray", vmin=0, vmax=90, origin="lower")
        panel.set_title(name, fontsize=9)
        panel.axis("off")
figure.savefig("clean_split_pairs.png", dpi=90)

# ![Three pairs: a file that was exported twice, a mirrored export,
# and a follow-up scan](../images/tutorials/clean_split_pairs.png)
#
# ## Split by groups
#
# Scans that are connected by a pair form a group, and a group goes to one side as a whole. What the hospital knows of
# its patients goes into the groups too: resemblance does not find every second scan of a patient.

connected = [(pair.first_id, pair.second_id) for pair in found.pairs]
connected.append(("scan_08", "follow_up"))  # from the table of patients
group = {name: name for name in images}
for first, second in connected:
    old, new = group[second], group[first]
    group = {name: new if its == old else its for name, its in group.items()}
groups = sorted(set(group.values()))
random.Random(0).shuffle(groups)
test_groups = set(groups[: len(groups) // 4])
side = {name: "test" if its in test_groups else "train" for name, its in group.items()}
with Path("split.csv").open("w", encoding="utf-8", newline="") as file:
    csv.writer(file).writerows([("id", "group", "side"), *((name, group[name], side[name]) for name in images)])
train, test = ([name for name in images if side[name] == which] for which in ("train", "test"))
print(f"{len(groups)} groups: {len(train)} scans to train, {len(test)} to test")

# ## Check it
#
# No pair crosses the split.

print([pair for pair in connected if side[pair[0]] != side[pair[1]]])

# For two cohorts that are split already, `rd.find_duplicates(train, test)` looks for each test scan in the training
# set; the command line has [the same](../curate-a-data-set.md). With a table of patients (`patients=`), scans of one
# patient are not reported.
