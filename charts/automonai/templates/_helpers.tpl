{{- define "automonai.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- define "automonai.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- $name := include "automonai.name" . -}}
{{- ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "automonai.selectorLabels" -}}
app.kubernetes.io/name: {{ include "automonai.name" . | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end -}}

{{- define "automonai.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | quote }}
{{ include "automonai.selectorLabels" . }}
app.kubernetes.io/part-of: automonai
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service | quote }}
{{- end -}}

{{- /* automonai.image (list $ "controller") */ -}}
{{- define "automonai.image" -}}
{{- $root := index . 0 -}}
{{- $image := index $root.Values.image (index . 1) -}}
{{- $name := printf "%s/%s" $root.Values.image.registry $image.repository | trimPrefix "/" -}}
{{- if $image.digest -}}
{{- printf "%s@%s" $name $image.digest -}}
{{- else -}}
{{- printf "%s:%s" $name (default $root.Chart.AppVersion $root.Values.image.tag) -}}
{{- end -}}
{{- end -}}

{{- define "automonai.storeSecret" -}}
{{- if and .Values.minio.enabled (not .Values.s3.existingSecret) -}}
{{- include "automonai.fullname" . }}-minio
{{- else -}}
{{- default (printf "%s-store" (include "automonai.fullname" .)) .Values.s3.existingSecret -}}
{{- end -}}
{{- end -}}

{{- define "automonai.hasKeys" -}}
{{- if or .Values.minio.enabled .Values.s3.existingSecret -}}true{{- end -}}
{{- end -}}

{{- define "automonai.endpoint" -}}
{{- if .Values.minio.enabled -}}
http://{{ include "automonai.fullname" . }}-minio.{{ .Release.Namespace }}.svc:9000
{{- else -}}
{{- .Values.s3.endpoint -}}
{{- end -}}
{{- end -}}

{{- /* Environment that opens the store, keys excepted. */ -}}
{{- define "automonai.storeEnvironment" -}}
AWS_ENDPOINT_URL_S3: {{ include "automonai.endpoint" . | quote }}
AWS_S3_ADDRESSING_STYLE: {{ .Values.s3.addressing | quote }}
AUTOMONAI_DATASET_CACHE_GIB: {{ .Values.cache.datasetsGiB | quote }}
AUTOMONAI_PREPARED_CACHE_GIB: {{ .Values.cache.preparedGiB | quote }}
{{- with .Values.s3.region }}
AWS_REGION: {{ . | quote }}
{{- end }}
{{- if .Values.s3.caSecret }}
AWS_CA_BUNDLE: /etc/automonai/ca/ca.crt
{{- end }}
{{- end -}}

{{- /* The claim that all pods share; empty: each node or each pod has its own cache. */ -}}
{{- define "automonai.cacheClaim" -}}
{{- $shared := or (eq .Values.cache.type "claim") (and (eq .Values.cache.type "auto") .Values.minio.enabled) -}}
{{- if .Values.cache.existingClaim -}}
{{- .Values.cache.existingClaim -}}
{{- else if $shared -}}
{{- include "automonai.fullname" . }}-cache
{{- end -}}
{{- end -}}

{{- /* The volume of datasets and prepared cases, as in a pod's spec. */ -}}
{{- define "automonai.cacheVolume" -}}
{{- if include "automonai.cacheClaim" . -}}
persistentVolumeClaim: {claimName: {{ include "automonai.cacheClaim" . | quote }}}
{{- else if eq .Values.cache.type "node" -}}
hostPath: {path: {{ .Values.cache.nodeFolder | quote }}, type: Directory}
{{- else -}}
emptyDir: {sizeLimit: {{ .Values.cache.size | quote }}}
{{- end -}}
{{- end -}}

{{- /* The pods' label automonai/cache: the claim of a volume that only one node at a time can have; else empty. */ -}}
{{- define "automonai.cacheLabel" -}}
{{- if eq .Values.cache.accessMode "ReadWriteOnce" -}}
{{- include "automonai.cacheClaim" . | trunc 63 | trimAll "-." -}}
{{- end -}}
{{- end -}}

{{- /*
Pods with that label go where others with it are: no scheduler sees to that for a volume that moves from node to node.
Your own required terms stay alone: the scheduler looks for pods that match all terms at once.
automonai.cacheAffinity (dict "root" $ "affinity" $yours)
*/ -}}
{{- define "automonai.cacheAffinity" -}}
{{- $affinity := deepCopy (default (dict) .affinity) -}}
{{- $near := default (dict) $affinity.podAffinity -}}
{{- $claim := include "automonai.cacheLabel" .root -}}
{{- if and $claim (not $near.requiredDuringSchedulingIgnoredDuringExecution) -}}
{{- $selector := dict "matchLabels" (dict "automonai/cache" $claim) -}}
{{- $term := dict "labelSelector" $selector "topologyKey" "kubernetes.io/hostname" -}}
{{- $_ := set $near "requiredDuringSchedulingIgnoredDuringExecution" (list $term) -}}
{{- $_ := set $affinity "podAffinity" $near -}}
{{- end -}}
{{- toJson $affinity -}}
{{- end -}}

{{- /* Without a user id the platform gives one, as OpenShift does; the rest of 'restricted' stays. */ -}}
{{- define "automonai.podSecurityContext" -}}
runAsNonRoot: true
{{- if not (kindIs "invalid" .Values.podSecurity.userId) }}
runAsUser: {{ int64 .Values.podSecurity.userId }}
runAsGroup: {{ int64 .Values.podSecurity.userId }}
fsGroup: {{ int64 .Values.podSecurity.userId }}
{{- end }}
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "automonai.securityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{- /* Requests and limits with every quantity as text: automonai.resources $resources */ -}}
{{- define "automonai.resources" -}}
{{- $resources := dict -}}
{{- range $kind := list "requests" "limits" -}}
{{- $quantities := dict -}}
{{- range $name, $quantity := index $ $kind -}}
{{- $isWhole := and (kindIs "float64" $quantity) (eq $quantity (floor $quantity)) -}}{{- /* of many bytes, say */ -}}
{{- $_ := set $quantities $name (ternary (toString (int64 $quantity)) (toString $quantity) $isWhole) -}}
{{- end -}}
{{- if $quantities -}}{{- $_ := set $resources $kind $quantities -}}{{- end -}}
{{- end -}}
{{- toYaml $resources -}}
{{- end -}}

{{- define "automonai.imagePullSecrets" -}}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
{{- range . }}
  - name: {{ . | quote }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "automonai.scheduling" -}}
{{- with .nodeSelector }}
nodeSelector: {{ toJson . }}
{{- end }}
{{- with .tolerations }}
tolerations: {{ toJson . }}
{{- end }}
{{- with .affinity }}
affinity: {{ toJson . }}
{{- end }}
{{- with .priorityClassName }}
priorityClassName: {{ . | quote }}
{{- end }}
{{- with .runtimeClassName }}
runtimeClassName: {{ . | quote }}
{{- end }}
{{- end -}}

{{- /* The same for a pod that mounts the cache: automonai.cacheScheduling (dict "root" $ "values" $values) */ -}}
{{- define "automonai.cacheScheduling" -}}
{{- $affinity := include "automonai.cacheAffinity" (dict "root" .root "affinity" .values.affinity) | fromJson -}}
{{- include "automonai.scheduling" (merge (dict "affinity" $affinity) .values) -}}
{{- end -}}

{{- /*
The patch of a workflow's pod, as JSON: automonai.podPatch (dict "root" $ "values" .Values.controller "resources" ...).
Argo's own containers get what the Pod Security level 'restricted' asks for; the rest differs from release to release.
*/ -}}
{{- define "automonai.podPatch" -}}
{{- $root := .root -}}
{{- $patch := fromYaml (include "automonai.podPatchYaml" .) -}}
{{- if $patch.Error -}}{{- fail (printf "the pods' patch is no YAML: %s" $patch.Error) -}}{{- end -}}
{{- toJson $patch -}}
{{- end -}}

{{- define "automonai.podPatchYaml" -}}
{{- $root := .root -}}
terminationGracePeriodSeconds: {{ int .graceSeconds }}
{{- if not (kindIs "invalid" .deadlineSeconds) }}
activeDeadlineSeconds: {{ int .deadlineSeconds }}
{{- end }}
{{- /* The accounts mount none; Argo's containers report by it, and a workflow's own field only ever takes it away. */}}
automountServiceAccountToken: true
enableServiceLinks: false
{{- include "automonai.imagePullSecrets" $root }}
{{- if .usesCache -}}
{{- include "automonai.cacheScheduling" . }}
{{- else -}}
{{- include "automonai.scheduling" .values }}
{{- end }}
initContainers:
  - name: init
    securityContext: {{ include "automonai.argoSecurityContext" $root | fromYaml | toJson }}
    resources: {{ include "automonai.resources" $root.Values.controller.executorResources | fromYaml | toJson }}
containers:
  - name: wait
    {{- /* How often it passes on a step's progress: Argo's own default is a minute. It stores logs and report, too. */}}
    {{- $env := list (dict "name" "ARGO_PROGRESS_PATCH_TICK_DURATION" "value" "10s") }}
    {{- range .values.env }}
    {{- if regexMatch "(?i)^(https?|no)_proxy$" .name }}{{ $env = append $env . }}{{ end }}
    {{- end }}
    env: {{ toJson $env }}
    securityContext: {{ include "automonai.argoSecurityContext" $root | fromYaml | toJson }}
    resources: {{ include "automonai.resources" $root.Values.controller.executorResources | fromYaml | toJson }}
  - name: main
    imagePullPolicy: {{ $root.Values.image.pullPolicy | quote }}
    {{- $env = concat (default (list) .threads) .values.env }}
    {{- with $env }}
    env: {{ toJson . }}
    {{- end }}
    resources: {{ toJson .resources }}
    volumeMounts:
      - {name: cache, mountPath: /cache/automonai}
      {{- if .sharedMemory }}
      - {name: shared-memory, mountPath: /dev/shm}
      {{- end }}
      {{- if $root.Values.s3.caSecret }}
      - {name: ca, mountPath: /etc/automonai/ca, readOnly: true}
      {{- end }}
volumes:
  {{- if not .usesCache }}
  - {name: cache, emptyDir: {sizeLimit: 1Gi}}
  {{- else }}
  - {{ merge (dict "name" "cache") (include "automonai.cacheVolume" $root | fromYaml) | toJson }}
  {{- end }}
  {{- with .scratch }}
  - {name: tmp, emptyDir: {sizeLimit: {{ . | quote }}}}
  - {name: home, emptyDir: {sizeLimit: {{ . | quote }}}}
  {{- end }}
  {{- with .sharedMemory }}
  - {name: shared-memory, emptyDir: {medium: Memory, sizeLimit: {{ . | quote }}}}
  {{- end }}
  {{- with $root.Values.s3.caSecret }}
  - {name: ca, secret: {secretName: {{ . | quote }}}}
  {{- end }}
{{- end -}}

{{- define "automonai.argoSecurityContext" -}}
allowPrivilegeEscalation: false
runAsNonRoot: true
capabilities:
  drop: [ALL]
{{- end -}}

{{- /* automonai.stepPatch (dict "root" $ "usesCache" true): only the check reads the dataset. */ -}}
{{- define "automonai.stepPatch" -}}
{{- $values := .root.Values.controller -}}
{{- $resources := include "automonai.resources" $values.resources | fromYaml -}}
{{- include "automonai.podPatch" (merge (dict "values" $values "resources" $resources "graceSeconds" 60) .) -}}
{{- end -}}

{{- /* automonai.stepPodMetadata (list $ values): its policies find a workflow's pods by these labels. */ -}}
{{- define "automonai.stepPodMetadata" -}}
{{- $root := index . 0 -}}
{{- $values := index . 1 -}}
labels:
  {{- range $key, $value := $values.labels }}
  {{ $key | quote }}: {{ $value | quote }}
  {{- end }}
  app.kubernetes.io/name: automonai
  app.kubernetes.io/part-of: automonai
  app.kubernetes.io/component: step
  app.kubernetes.io/instance: {{ $root.Release.Name | quote }}
annotations: {{ toJson $values.annotations }}
{{- end -}}

{{- /*
For pods that train or predict without a Job; the parameter gpus of their workflow says how many GPUs. Only as a number:
the patch is JSON in a text, and what a submitter writes could else end that text and go on as part of the pod.
*/ -}}
{{- define "automonai.trialPatch" -}}
{{- $trial := .Values.trial -}}
{{- $resources := include "automonai.resources" $trial.resources | fromYaml -}}
{{- $limits := default (dict) $resources.limits -}}
{{- $_ := set $limits $trial.gpu.resourceName "{{=asInt(workflow.parameters.gpus)}}" -}}
{{- $_ := set $resources "limits" $limits -}}
{{- $threads := list -}}
{{- if not (kindIs "invalid" $trial.threads) -}}
{{- range list "OMP_NUM_THREADS" "MKL_NUM_THREADS" -}}
{{- $threads = append $threads (dict "name" . "value" (toString (int $trial.threads))) -}}
{{- end -}}
{{- end -}}
{{- include "automonai.podPatch" (dict "root" . "values" $trial "threads" $threads "resources" $resources "graceSeconds" $trial.graceSeconds "sharedMemory" $trial.sharedMemory "scratch" $trial.scratch "deadlineSeconds" $trial.activeDeadlineSeconds "usesCache" true) -}}
{{- end -}}

{{- /*
A template that Hera wrote, with the release's values in place of its marks: automonai.workflowTemplate (list $ "file").
The file is text to Helm: Argo's double braces are not rendered.
*/ -}}
{{- define "automonai.workflowTemplate" -}}
{{- $root := index . 0 -}}
{{- $name := include "automonai.fullname" $root -}}
{{- $marks := dict
  "controllerImage" (include "automonai.image" (list $root "controller"))
  "trainerImage" (include "automonai.image" (list $root "trainer"))
  "cacheLabel" (include "automonai.cacheLabel" $root)
  "stepAccount" (printf "%s-step" $name)
  "controllerAccount" (printf "%s-controller" $name)
  "settings" (printf "%s-settings" $name)
  "storeSecret" (include "automonai.storeSecret" $root)
  "jobTemplate" (printf "%s-job-template" $name)
  "artifactRepositories" (printf "%s-artifacts" $name)
  "gpuCount" (toString (int $root.Values.trial.gpu.count))
  "parallelRuns" (toString (int $root.Values.workflow.parallelRuns))
  "workflowKeepSeconds" (int $root.Values.workflow.keepSeconds)
  "metricsPort" (ternary "9109" "" $root.Values.metrics.enabled)
  "metricsScraped" (toString $root.Values.metrics.enabled)
  "stepPodMetadata" (include "automonai.stepPodMetadata" (list $root $root.Values.controller) | fromYaml)
  "trialPodMetadata" (include "automonai.stepPodMetadata" (list $root $root.Values.trial) | fromYaml)
  "podSecurityContext" (include "automonai.podSecurityContext" $root | fromYaml)
  "stepPodPatch" (include "automonai.stepPatch" (dict "root" $root))
  "checkPodPatch" (include "automonai.stepPatch" (dict "root" $root "usesCache" true))
  "trialPodPatch" (include "automonai.trialPatch" $root)
-}}
{{- $text := $root.Files.Get (index . 1) -}}
{{- range $mark, $value := $marks -}}
{{- $text = replace (printf "'@@%s@@'" $mark) (toJson $value) $text -}}
{{- end -}}
{{- with regexFind "'@@[A-Za-z]+@@'" $text -}}
{{- fail (printf "%s has a mark that the chart does not know: %s" (index $ 1) .) -}}
{{- end -}}
{{- $text -}}
{{- end -}}
