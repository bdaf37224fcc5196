{{- /* The settings of a run's Job, as automonai/execution/jobs.py reads them. */ -}}
{{- define "automonai.jobTemplate" -}}
{{- $trial := .Values.trial -}}
{{- $resources := include "automonai.resources" $trial.resources | fromYaml -}}
image: {{ include "automonai.image" (list . "trainer") | quote }}
image_pull_policy: {{ .Values.image.pullPolicy | quote }}
image_pull_secrets: {{ toJson .Values.image.pullSecrets }}
service_account: "{{ include "automonai.fullname" . }}-trial"
{{- if not (kindIs "invalid" .Values.podSecurity.userId) }}
user_id: {{ int64 .Values.podSecurity.userId }}
{{- end }}
labels:
  app.kubernetes.io/instance: {{ .Release.Name | quote }}
  {{- with include "automonai.cacheLabel" . }}
  automonai/cache: {{ . | quote }}
  {{- end }}
  {{- range $key, $value := $trial.labels }}
  {{ $key | quote }}: {{ $value | quote }}
  {{- end }}
annotations: {{ toJson $trial.annotations }}
requests: {{ toJson (default (dict) $resources.requests) }}
limits: {{ toJson (default (dict) $resources.limits) }}
gpu_resource: {{ $trial.gpu.resourceName | quote }}
gpus_per_run: {{ int $trial.gpu.count }}
{{- if not (kindIs "invalid" $trial.gpu.memoryGiB) }}
gpu_memory_gib: {{ $trial.gpu.memoryGiB }}
{{- end }}
shared_memory: {{ $trial.sharedMemory | quote }}
{{- with $trial.scratch }}
scratch: {{ . | quote }}
{{- end }}
cache: {{ include "automonai.cacheVolume" . | fromYaml | toJson }}
node_selector: {{ toJson $trial.nodeSelector }}
tolerations: {{ toJson $trial.tolerations }}
affinity: {{ include "automonai.cacheAffinity" (dict "root" . "affinity" $trial.affinity) }}
{{- with $trial.priorityClassName }}
priority_class: {{ . | quote }}
{{- end }}
{{- with $trial.runtimeClassName }}
runtime_class: {{ . | quote }}
{{- end }}
{{- with .Values.kueue.queueName }}
kueue_queue: {{ . | quote }}
{{- end }}
env:
  {{- include "automonai.storeEnvironment" . | nindent 2 }}
  {{- if not (kindIs "invalid" $trial.threads) }}
  OMP_NUM_THREADS: {{ int $trial.threads | quote }}
  MKL_NUM_THREADS: {{ int $trial.threads | quote }}
  {{- end }}
{{- with $trial.env }}
more_env: {{ toJson . }}
{{- end }}
{{- if include "automonai.hasKeys" . }}
env_from_secrets: [{{ include "automonai.storeSecret" . | quote }}]
{{- end }}
{{- with .Values.s3.caSecret }}
ca_secret: {{ . | quote }}
{{- end }}
{{- if .Values.metrics.enabled }}
metrics_port: 9109
{{- end }}
{{- if not (kindIs "invalid" $trial.activeDeadlineSeconds) }}
active_deadline_seconds: {{ int $trial.activeDeadlineSeconds }}
{{- end }}
ttl_seconds: {{ int $trial.ttlSeconds }}
grace_seconds: {{ int $trial.graceSeconds }}
max_disruptions: {{ int $trial.maxDisruptions }}
pending_seconds: {{ $trial.pendingSeconds }}
image_seconds: {{ $trial.imageSeconds }}
{{- end -}}
