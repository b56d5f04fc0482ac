"""The student's side: targets from a store, losses, models, and the loop that trains. No Ray, no teacher.

In a loop of your own, with any model that gives logits [rows, length, V]:

    from student.data import TargetReader
    from student.losses import sparse_cross_entropy

    for batch in TargetReader(url, batch_rows=64):
        logits = batch.pick(model(batch.inputs["tokens"]), "logits")
        sparse_cross_entropy(logits, batch.targets["logits"]).backward()
        optimizer.step()
        optimizer.zero_grad()

The iteration is endless: leave it when you have enough, keep `reader.state_dict()` to go on at that row. With
`student.losses.distillation_loss` the loss is chosen by the kind of the targets.
"""
