"""The settings of ``headrace finetune`` and its command."""
