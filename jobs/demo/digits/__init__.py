"""The digits leg: an ensemble labels jittered digits, and a shallow net learns from what it said.

Scikit-learn's 1,797 handwritten digits are split into a training and a test set. Several networks learn all
the training labels; their mean labels tens of thousands of digits jittered out of the training images, by
the same job as any corpus: prepare, label, store, verify. Then one shallow net with a linear bottleneck is
trained anew in five ways, for the same steps with the same optimiser: from few labels (plain and jittered),
from the store (Ba & Caruana's L2 on logits, Hinton's tempered targets), and from all the labels, as the other
end of the scale. No test digit is jittered, labelled or trained on.
"""
