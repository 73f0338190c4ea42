"""What a checkpoint keeps beside the model, in a directory of its own: loaders read every safetensors
file of the top directory."""

RECORDS = "mixllm"
SALIENCE = f"{RECORDS}/salience.safetensors"
PLAN = f"{RECORDS}/plan.json"
SUMMARY = f"{RECORDS}/summary.json"
RUN = f"{RECORDS}/run.json"
LOG = f"{RECORDS}/log.jsonl"
LAYERS = f"{RECORDS}/layers.json"
MEASURED = f"{RECORDS}/measured.json"
PREDICTED = f"{RECORDS}/predicted.json"
REPORT = f"{RECORDS}/report.html"
