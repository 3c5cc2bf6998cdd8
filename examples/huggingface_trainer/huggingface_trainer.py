"""Train with the Hugging Face Trainer. A recipe names it as `trainer: "huggingface_trainer:fit"`.

The same function trains on labels, lets a student learn from a teacher, and trains simulated int8.
"""

from typing import Any

import torch
from torch import nn
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from edgepack.compress.training.own_trainer import Job


class DistillationTrainer(Trainer):
    """Your own Trainer: batches are those of the job, (inputs, targets), and a teacher is heard if there is one."""

    def __init__(self, job: Job, arguments: TrainingArguments, alpha: float, temperature: float) -> None:
        super().__init__(job.module, arguments, callbacks=[Report(job)])
        self.remove_callback(PrinterCallback)
        self.job, self.alpha, self.temperature = job, alpha, temperature

    def get_train_dataloader(self) -> Any:
        return self.job.loader("train")

    def compute_loss(self, model: nn.Module, inputs: Any, *_: Any, **__: Any) -> torch.Tensor:
        samples, targets = inputs
        logits = model(samples)
        loss = self.job.loss(logits, targets)
        if self.job.teacher is None:
            return loss
        with torch.no_grad():
            taught = self.job.teacher.to(self.args.device)(samples)
        soft = self.job.task.distill(logits, taught, self.temperature)
        return self.alpha * soft + (1 - self.alpha) * loss


class Report(TrainerCallback):
    """Tells edgepack what the Trainer logs after each epoch."""

    def __init__(self, job: Job) -> None:
        self.job = job

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        if logs and "loss" in logs:  # the last log is a summary
            told = {"loss": logs["loss"], "learning_rate": logs["learning_rate"]}
            self.job.report(epoch=round(logs["epoch"]), score=self.job.score(), **told)


def fit(job: Job, rate: float, alpha: float = 0.9, temperature: float = 4.0, **more: Any) -> None:
    """`more` are other TrainingArguments, such as `weight_decay: 0.05`."""
    arguments = TrainingArguments(
        output_dir=str(job.folder),  # removed after the training
        num_train_epochs=job.settings.epochs,
        per_device_train_batch_size=job.settings.batch_size,
        learning_rate=rate,
        lr_scheduler_type="cosine",
        seed=job.seed,
        use_cpu=job.device == "cpu",
        logging_strategy="epoch",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,  # edgepack shows what is reported
        **more,
    )
    arguments._n_gpu = min(1, arguments.n_gpu)  # with several it would wrap the model in DataParallel
    DistillationTrainer(job, arguments, alpha, temperature).train()
