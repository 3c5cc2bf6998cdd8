"""Train by timm's recipe. A recipe names it as `trainer: "timm_trainer:fit"`.

Its optimizer and schedule, mixup and smoothed labels, and an average of the weights, which is what is kept. If there is
a teacher, it is heard too: of mixed pictures, as in DeiT.
"""

import torch
from timm.data import Mixup
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import AverageMeter, ModelEmaV3

from edgepack.compress.training.own_trainer import Job


def fit(
    job: Job,
    opt: str = "adamw",
    rate: float = 1e-3,
    weight_decay: float = 0.05,
    warmup_epochs: int = 1,
    mixup: float = 0.2,
    cutmix: float = 0.0,
    smoothing: float = 0.1,
    ema: float = 0.99,
    alpha: float = 0.9,
    temperature: float = 4.0,
) -> None:
    job.module.to(job.device)
    loader = job.loader("train", drop_last=True)  # Mixup needs batches of an even size
    optimizer = create_optimizer_v2(job.module, opt=opt, lr=rate, weight_decay=weight_decay)
    schedule, epochs = create_scheduler_v2(
        optimizer,
        num_epochs=job.settings.epochs,
        warmup_epochs=warmup_epochs,
        step_on_epochs=False,
        updates_per_epoch=len(loader),
    )
    classes = int(job.data.train.targets.max()) + 1
    mixed = mixup > 0 or cutmix > 0
    mix = Mixup(mixup, cutmix, label_smoothing=smoothing, num_classes=classes) if mixed else None
    on_labels = SoftTargetCrossEntropy() if mixed else LabelSmoothingCrossEntropy(smoothing)
    average = ModelEmaV3(job.module, decay=ema, use_warmup=True)
    step = 0
    for epoch in range(epochs):
        job.module.train()
        losses = AverageMeter()
        for inputs, targets in loader:
            inputs, targets = inputs.to(job.device), targets.to(job.device)
            if mix is not None:
                inputs, targets = mix(inputs, targets)
            logits = job.module(inputs)
            loss = on_labels(logits, targets)
            if job.teacher is not None:
                with torch.no_grad():
                    taught = job.teacher.to(job.device)(inputs)
                loss = alpha * job.task.distill(logits, taught, temperature) + (1 - alpha) * loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
            average.update(job.module, step)
            schedule.step_update(step)
            losses.update(loss.item(), len(logits))
        rate = optimizer.param_groups[0]["lr"]
        job.report(epoch=epoch + 1, loss=losses.avg, score=job.score(average.module), learning_rate=rate)
    job.module.load_state_dict(average.module.state_dict())
