"""Train with Lightning. A recipe names it as `trainer: "lightning_trainer:fit"`.

The same function trains on labels, recovers with a teacher what was pruned, and trains simulated int8.
"""

from typing import Any

import lightning
import torch

from edgepack.compress.training.own_trainer import Job


class Lesson(lightning.LightningModule):
    """Your own LightningModule, around the module that edgepack compresses."""

    def __init__(self, job: Job, rate: float, alpha: float, temperature: float) -> None:
        super().__init__()
        self.module = job.module
        self.job = job  # no module, so that Lightning does not train the teacher
        self.rate, self.alpha, self.temperature = rate, alpha, temperature

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        inputs, targets = batch
        logits = self.module(inputs)
        loss = self.job.loss(logits, targets)
        if self.job.teacher is not None:
            with torch.no_grad():
                taught = self.job.teacher.to(self.device)(inputs)
            soft = self.job.task.distill(logits, taught, self.temperature)
            loss = self.alpha * soft + (1 - self.alpha) * loss
        self.log("loss", loss, on_step=False, on_epoch=True, batch_size=len(targets))
        return loss

    def on_train_epoch_end(self) -> None:
        [rate] = self.lr_schedulers().get_last_lr()
        loss = float(self.trainer.callback_metrics["loss"])
        self.job.report(epoch=self.current_epoch + 1, loss=loss, score=self.job.score(), learning_rate=rate)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.rate)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.rate, total_steps=steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def fit(job: Job, rate: float, alpha: float = 0.9, temperature: float = 4.0) -> None:
    trainer = lightning.Trainer(
        max_epochs=job.settings.epochs,
        accelerator="gpu" if job.device == "cuda" else "cpu",
        devices=1,
        gradient_clip_val=1.0,
        default_root_dir=job.folder,  # removed after the training
        logger=False,  # or one of Lightning's: it writes into job.folder
        enable_checkpointing=False,
        enable_progress_bar=False,  # edgepack shows what is reported
        enable_model_summary=False,
    )
    trainer.fit(Lesson(job, rate, alpha, temperature), job.loader("train"))
